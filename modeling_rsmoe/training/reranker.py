"""Fitting the reranker: a ridge regression of reduced rank from images to the n-grams of their captions, in closed form.

No gradients, no stages: a minute once the image features are there. The ridge is chosen on a tenth of the train images.
"""

import json
import warnings
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from ..configuration_rsmoe import RSMoEConfig
from ..data.provenance import TRAINING_RECORD, folder_sha256, package_versions, records_sha256
from ..data.records import read_captions
from ..data.rows import clean_caption
from ..errors_rsmoe import RSMoEError
from ..hub.folders import check_target, whole_folder
from ..reranker_rsmoe import RSMoEReranker, hashed_ngrams, pool_image_features
from ..utils.files import cache_folder, write_whole
from .checkpoints import save_tensors
from .features import FeatureCache, Progress
from .settings import Recipe
from .stages import LEARNED, STATE, history, load_start


if TYPE_CHECKING:
    from ..data.records import CaptionRecord
    from ..processing_rsmoe import RSMoEProcessor

RIDGES = (0.001, 0.01, 0.1, 1.0)
TENTH = 10  # of the images, held out, chooses the ridge
LEAST = 3  # images whose captions have an n-gram that is predicted
FEWEST = 2 * TENTH  # images that say anything
SMALLEST = 1e-6  # of the largest: directions of less are rounding
READ = 64  # images whose features are read together


def train_reranker(
    data: str | Path,
    output: str | Path,
    checkpoint: str | Path,
    *,
    rank: int = 256,
    buckets: int = 4096,
    datasets: Sequence[str] | None = None,
    features: str | Path | None = None,
    overwrite: bool = False,
    progress: Progress = lambda message, share: None,
) -> Path:
    """Fit a reranker to the captions of the train split and write the checkpoint with it; all other weights stay.

    Args:
        data: a data folder with captions.jsonl.
        output: the folder of the new checkpoint.
        checkpoint: the folder whose ViT sees the images. A reranker that it has is replaced.
        rank, buckets: of the reranker, which has about `buckets` x `rank` weights.
        datasets: of the data; by default all.
        features: folder of image features, by default in the cache.
        overwrite: replace `output` if it is an RS-MoE checkpoint.
        progress: told what happens.

    Returns:
        `output`.

    Raises:
        RSMoEError: too few images, a rank that does not fit, quantised weights, an image that cannot be read, `output` exists.
    """
    output, start, folder = Path(output).absolute(), Path(checkpoint).absolute(), Path(data).absolute()
    check_target(output, overwrite)
    progress("reading the data", None)
    records = read_captions(folder, "train", None if datasets is None else list(datasets))
    if len(records) < FEWEST:
        raise RSMoEError(f"{len(records)} captioned images are too few to fit a reranker; give {FEWEST} or more")
    model, processor = load_start(start, Recipe())
    model.eval()
    reranker = model.model.add_reranker(rank, buckets)
    cache = FeatureCache(features or cache_folder() / "features", model, processor)
    cache.add([record.image for record in records], progress)
    seen = []
    for first in range(0, len(records), READ):
        progress("reading image features", first / len(records))
        seen.append(pool_image_features(cache([record.image for record in records[first : first + READ]])))
    progress(f"fitting to {len(records)} images", None)
    found = fit_reranker(reranker, torch.cat(seen), _token_ids(records, processor))
    progress(f"writing {output}", None)
    record = _record(records, folder, start)
    record["reranker"] |= {"rank": rank, "buckets": buckets, "datasets": datasets, "likeness": found}
    with whole_folder(output) as part:
        dtype = RSMoEConfig.from_pretrained(start).dtype or torch.float32
        cast(Any, model).to(dtype).save_pretrained(part, save_original_format=False)
        processor.save_pretrained(part)
        learned = {f"model.reranker.{name}": value for name, value in reranker.state_dict().items()}
        (part / STATE).mkdir()
        save_tensors(learned, part / STATE / LEARNED)
        write_whole(part / TRAINING_RECORD, json.dumps(record, indent=2) + "\n")
    return output


@torch.no_grad()
def fit_reranker(
    reranker: RSMoEReranker, seen: torch.Tensor, captions: Sequence[Sequence[Sequence[int]]]
) -> dict[str, float]:
    """Set the reranker's weights in place.

    Args:
        seen: [images, 3 x vision width], of `looks`.
        captions: for each image its captions as token ids.

    Returns:
        Ridge -> how like the captions of held-out images are to those of the image that the prediction likes best; the
        likeness of two texts is the mean cosine of their n-grams. The best ridge is taken.
    """
    images, (buckets, rank) = len(captions), reranker.ngram_embeddings.weight.shape
    known = [{p for text in some for c in hashed_ngrams(text, buckets) for p in c} for some in captions]
    frequency = torch.bincount(torch.tensor([place for some in known for place in some]), minlength=buckets)
    reranker.idf.weight.copy_(torch.log(images / frequency.clamp(min=1)).unsqueeze(1))
    texts = _means(reranker, captions) * (frequency >= LEAST)  # rare n-grams count for a text's length only
    texts = texts.coalesce()
    mean, spread = seen.mean(0), seen.std(0) + 1e-6
    scaled = (seen - mean) / spread
    held_out = torch.arange(images) % TENTH == 0
    found = {ridge: _likeness(scaled, texts, held_out, ridge) for ridge in RIDGES}
    weights, average = _solve(scaled, texts, max(found, key=lambda ridge: found[ridge]))
    main = _main_directions(scaled, weights, average, rank)  # [buckets, rank]
    look = (weights @ main).T / spread  # [rank, 3 x vision width]
    reranker.image_projection.weight.copy_(look)
    reranker.image_projection.bias.copy_(average @ main - look @ mean)
    reranker.ngram_embeddings.weight.copy_(main)
    return {str(ridge): round(value, 4) for ridge, value in found.items()}


def _token_ids(records: "Sequence[CaptionRecord]", processor: "RSMoEProcessor") -> list[list[list[int]]]:
    """Captions as the rows of a training have them."""
    texts = [f" {clean_caption(caption)}" for record in records for caption in record.captions]
    ids = iter(processor.tokenizer(texts, add_special_tokens=False)["input_ids"])
    return [[next(ids) for _ in record.captions] for record in records]


def _means(reranker: RSMoEReranker, captions: Sequence[Sequence[Sequence[int]]]) -> torch.Tensor:
    """[images, buckets], sparse: the mean of the n-gram weights of each image's captions."""
    cells: defaultdict[tuple[int, int], float] = defaultdict(float)
    for row, some in enumerate(captions):
        for text in some:
            for place, weight in zip(*reranker.weigh(text)):
                cells[row, place] += weight / len(some)
    shape = (len(captions), reranker.ngram_embeddings.num_embeddings)
    places, weights = torch.tensor(list(cells)).T, torch.tensor(list(cells.values()))
    return torch.sparse_coo_tensor(places, weights, shape, check_invariants=True)


def _csr(texts: torch.Tensor) -> torch.Tensor:
    """As products of it are fast."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta state")
        return texts.to_sparse_csr()


def _solve(seen: torch.Tensor, texts: torch.Tensor, ridge: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights [width, buckets] of the regression, and the mean text [buckets]."""
    square = seen.T @ seen / len(seen) + ridge * torch.eye(seen.shape[1])
    product = _csr(texts.t()) @ seen / len(seen)  # [buckets, width]
    return torch.linalg.solve(square, product.T), torch.sparse.sum(texts, 0).to_dense() / len(seen)


def _likeness(seen: torch.Tensor, texts: torch.Tensor, held_out: torch.Tensor, ridge: float) -> float:
    """How like held-out images' captions are to those of the other images that the regression takes for them."""
    rest, own = (texts.index_select(0, part.nonzero().squeeze(1)).coalesce() for part in (~held_out, held_out))
    weights, average = _solve(seen[~held_out], rest, ridge)
    predicted = seen[held_out] @ weights + average
    taken = (_csr(rest) @ predicted.T.contiguous()).argmax(0)
    return (rest.index_select(0, taken).to_dense() * own.to_dense()).sum(1).mean().item()


def _main_directions(seen: torch.Tensor, weights: torch.Tensor, average: torch.Tensor, rank: int) -> torch.Tensor:
    """[buckets, rank], orthonormal: the directions in which predictions differ most. What they keep of a prediction is the
    best of that rank."""
    values, vectors = torch.linalg.eigh((seen.T @ seen / len(seen)).double())
    root = vectors * values.clamp(min=0).sqrt()
    # [width + 1, buckets]: the products of its columns are the mean products of the predictions.
    spread = torch.cat([root.T @ weights.double(), average.double().unsqueeze(0)])
    values, vectors = torch.linalg.eigh(spread @ spread.T)
    values, vectors = values[-rank:], vectors[:, -rank:]
    kept = values > SMALLEST * values[-1]
    return ((spread.T @ vectors) * kept / values.clamp(min=1e-30).sqrt()).float()


def _record(records: "Sequence[CaptionRecord]", data: Path, start: Path) -> dict[str, Any]:
    """What the checkpoint's record says already, and what is fitted here from what."""
    return {
        **(history(start) or {"format": 1, "finished": False}),
        "reranker": {
            "data": {"sha256": records_sha256(records, data), "captioned_images": len(records)},
            "start": {"name": start.name, "sha256": folder_sha256(start)},
            "versions": package_versions(),
        },
    }
