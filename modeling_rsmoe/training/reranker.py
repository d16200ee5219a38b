"""Fitting the reranker: a ridge regression of reduced rank from images to the n-grams of their captions.

It is solved in closed form, in a minute once the image features are there. The ridge is chosen on a tenth of the train
images. Where the data folder has object labels, the reranker learns these too (`object_head.py`).
"""

import json
import warnings
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch

from ..data.cleaning import clean_caption
from ..data.records import CaptionRecord, read_captions, records_sha256
from ..errors_rsmoe import RSMoEError
from ..hub.facts import reranker_step
from ..hub.folders import check_target, whole_folder
from ..hub.records import carry_records
from ..inference.loading import open_config
from ..processing_rsmoe import RSMoEProcessor
from ..reranker_rsmoe import RSMoEReranker, hashed_ngrams, pool_image_features
from ..utils.files import cache_folder, write_whole
from ..utils.progress import Progress, no_progress
from ..utils.provenance import TRAINING_RECORD, folder_sha256, package_versions
from .checkpoints import save_tensors
from .features import FeatureCache
from .object_head import fit_object_head, labelled_images, learnable_objects, token_texts
from .outputs import LEARNED, STATE, history
from .settings import Recipe
from .stages import load_start


RIDGE_GRID = (0.001, 0.01, 0.1, 1.0)
HOLDOUT_EVERY = 10  # every tenth image is held out to choose the ridge
MIN_DOC_FREQ = 3  # images whose captions must have an n-gram for it to be predicted
MIN_IMAGES = 2 * HOLDOUT_EVERY  # fewer are too few to fit
EIG_TOL = 1e-6  # of the largest eigenvalue: directions of less are rounding
FEATURE_BATCH = 64  # images whose features are read together


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
    progress: Progress = no_progress,
) -> Path:
    """Fit a reranker to the captions of the train split and write the checkpoint with it; all other weights stay.

    With objects.jsonl in the data folder it also learns which objects an image shows.

    Args:
        data: a data folder with captions.jsonl, perhaps objects.jsonl.
        output: the folder of the new checkpoint.
        checkpoint: the folder whose ViT encodes the images. A reranker that it has is replaced.
        rank: of the reranker, which has about `buckets` x `rank` weights.
        buckets: number of hashed n-grams.
        datasets: of the data; by default all.
        features: folder of image features, by default in the cache.
        overwrite: replace `output` if it is an RS-MoE checkpoint.
        progress: what happens.

    Returns:
        `output`.

    Raises:
        RSMoEError: too few images, a rank that does not fit, quantised weights, an image that cannot be read, or
            `output` exists.
    """
    output, start, folder = Path(output).absolute(), Path(checkpoint).absolute(), Path(data).absolute()
    check_target(output, overwrite)
    progress("reading the data")
    records = read_captions(folder, "train", None if datasets is None else list(datasets))
    if len(records) < MIN_IMAGES:
        raise RSMoEError(f"{len(records)} captioned images are too few to fit a reranker; give {MIN_IMAGES} or more")
    model, processor = load_start(start, Recipe())
    model.eval()
    labels = labelled_images(folder, datasets)
    objects = learnable_objects(list(labels.values()))
    vocab_size = len(processor.tokenizer)
    reranker = model.model.add_reranker(rank, buckets, objects, vocab_size)
    cache = FeatureCache(features or cache_folder() / "features", model, processor)
    pooled = pooled_features(cache, [record.image for record in records], progress)
    progress(f"fitting to {len(records)} images")
    similarity = fit_reranker(reranker, pooled, token_ids(records, processor))
    head_loss: dict[str, float] = {}
    if reranker.objects is not None:
        pooled = pooled_features(cache, list(labels), progress)
        progress(f"learning {len(objects)} objects of {len(labels)} images")
        head_loss = fit_object_head(reranker.objects, pooled, list(labels.values()))
        reranker.objects.set_pieces(token_texts(processor.tokenizer))
    progress(f"writing {output}")
    fitted: dict[str, Any] = {"rank": rank, "buckets": buckets, "datasets": datasets, "similarity": similarity}
    fitted["data"] = {"sha256": records_sha256(records, folder), "captioned_images": len(records)}
    if objects:
        fitted["objects"] = {"names": list(objects), "labelled_images": len(labels), "held_out_loss": head_loss}
    fitted["start"] = {"name": start.name, "sha256": folder_sha256(start)}
    fitted["versions"] = package_versions()
    record = {**(history(start) or {"format": 1, "finished": False}), "reranker": fitted}
    with whole_folder(output, overwrite) as unfinished:
        dtype = open_config(start).dtype or torch.float32
        cast(Any, model).to(dtype).save_pretrained(unfinished, save_original_format=False)
        processor.save_pretrained(unfinished)
        learned = {f"model.reranker.{name}": value for name, value in reranker.state_dict().items()}
        save_tensors(learned, unfinished / STATE / LEARNED)
        write_whole(unfinished / TRAINING_RECORD, json.dumps(record, indent=2) + "\n")
        carry_records(start, unfinished, output.name, [reranker_step(fitted)])
    return output


@torch.no_grad()
def fit_reranker(
    reranker: RSMoEReranker, pooled: torch.Tensor, captions: Sequence[Sequence[Sequence[int]]]
) -> dict[str, float]:
    """Set the reranker's weights in place.

    Args:
        reranker: of the vision width.
        pooled: [images, 3 x vision width], of `pool_image_features`.
        captions: for each image its captions as token ids.

    Returns:
        Ridge -> how similar the captions of held-out images are to those of the image that the prediction retrieves;
        the similarity of two texts is the mean cosine of their n-grams. The best ridge is taken.
    """
    images, rank = len(captions), reranker.ngram_embeddings.embedding_dim
    texts = weigh_captions(reranker, captions)
    mean, spread = pooled.mean(0), pooled.std(0) + 1e-6
    scaled = (pooled - mean) / spread
    held_out = torch.arange(images) % HOLDOUT_EVERY == 0
    similarity = {ridge: _retrieval_similarity(scaled, texts, held_out, ridge) for ridge in RIDGE_GRID}
    weights, average = _solve(scaled, texts, max(similarity, key=lambda ridge: similarity[ridge]))
    directions = _main_directions(scaled, weights, average, rank)  # [buckets, rank]
    projection = (weights @ directions).T / spread  # [rank, 3 x vision width]
    reranker.image_projection.weight.copy_(projection)
    reranker.image_projection.bias.copy_(average @ directions - projection @ mean)
    reranker.ngram_embeddings.weight.copy_(directions)
    return {str(ridge): round(value, 4) for ridge, value in similarity.items()}


@torch.no_grad()
def weigh_captions(reranker: RSMoEReranker, captions: Sequence[Sequence[Sequence[int]]]) -> torch.Tensor:
    """[images, buckets], sparse: the mean tf-idf weights of the n-grams of each image's captions.

    Args:
        reranker: its inverse document frequencies are set to those of these captions.
        captions: for each image its captions as token ids.
    """
    frequency = _document_frequency(captions, reranker.ngram_embeddings.num_embeddings)
    reranker.idf.weight.copy_(torch.log(len(captions) / frequency.clamp(min=1)).unsqueeze(1))
    # Rare n-grams count for a text's length only.
    return (_means(reranker, captions) * (frequency >= MIN_DOC_FREQ)).coalesce()


def pooled_features(cache: FeatureCache, images: Sequence[Path], progress: Progress = no_progress) -> torch.Tensor:
    """What the frozen ViT says of whole images, [images, 3 x vision width]: of `pool_image_features`."""
    cache.add(images, progress)
    pooled = []
    for first in range(0, len(images), FEATURE_BATCH):
        progress("reading image features", first, len(images), "images")
        pooled.append(pool_image_features(cache(images[first : first + FEATURE_BATCH])))
    return torch.cat(pooled)


def token_ids(records: Sequence[CaptionRecord], processor: RSMoEProcessor) -> list[list[list[int]]]:
    """For each image its captions as the examples of a training have them."""
    texts = [f" {clean_caption(caption)}" for record in records for caption in record.captions]
    ids = iter(processor.tokenizer(texts, add_special_tokens=False)["input_ids"])
    return [[next(ids) for _ in record.captions] for record in records]


def _document_frequency(captions: Sequence[Sequence[Sequence[int]]], buckets: int) -> torch.Tensor:
    """[buckets]: the number of images whose captions have an n-gram of the bucket."""
    frequency = torch.zeros(buckets, dtype=torch.long)
    for of_image in captions:
        places = {place for text in of_image for counts in hashed_ngrams(text, buckets) for place in counts}
        frequency[list(places)] += 1
    return frequency


def _means(reranker: RSMoEReranker, captions: Sequence[Sequence[Sequence[int]]]) -> torch.Tensor:
    """[images, buckets], sparse: the mean of the n-gram weights of each image's captions."""
    cells: defaultdict[tuple[int, int], float] = defaultdict(float)
    for image, of_image in enumerate(captions):
        for text in of_image:
            for place, weight in zip(*reranker.weigh(text)):
                cells[image, place] += weight / len(of_image)
    shape = (len(captions), reranker.ngram_embeddings.num_embeddings)
    places, weights = torch.tensor(list(cells)).T, torch.tensor(list(cells.values()))
    return torch.sparse_coo_tensor(places, weights, shape, check_invariants=True)


def _csr(texts: torch.Tensor) -> torch.Tensor:
    """As products of it are fast."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta state")
        return texts.to_sparse_csr()


def _solve(features: torch.Tensor, texts: torch.Tensor, ridge: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights [width, buckets] of the regression, and the mean text [buckets]."""
    images, width = features.shape
    covariance = features.T @ features / images + ridge * torch.eye(width)
    product = _csr(texts.t()) @ features / images  # [buckets, width]
    return torch.linalg.solve(covariance, product.T), torch.sparse.sum(texts, 0).to_dense() / images


def _retrieval_similarity(features: torch.Tensor, texts: torch.Tensor, held_out: torch.Tensor, ridge: float) -> float:
    """How similar captions of held-out images are to those of the other images that the regression retrieves."""
    fitted, true = (texts.index_select(0, chosen.nonzero().squeeze(1)).coalesce() for chosen in (~held_out, held_out))
    weights, average = _solve(features[~held_out], fitted, ridge)
    predicted = features[held_out] @ weights + average
    retrieved = (_csr(fitted) @ predicted.T.contiguous()).argmax(0)
    return (fitted.index_select(0, retrieved).to_dense() * true.to_dense()).sum(1).mean().item()


def _main_directions(features: torch.Tensor, weights: torch.Tensor, average: torch.Tensor, rank: int) -> torch.Tensor:
    """[buckets, rank], orthonormal: the directions in which predictions differ most, the best of that rank."""
    values, vectors = torch.linalg.eigh((features.T @ features / len(features)).double())
    root = vectors * values.clamp(min=0).sqrt()
    # [width + 1, buckets]: the products of its columns are the mean products of the predictions.
    spread = torch.cat([root.T @ weights.double(), average.double().unsqueeze(0)])
    values, vectors = torch.linalg.eigh(spread @ spread.T)
    values, vectors = values[-rank:], vectors[:, -rank:]
    significant = values > EIG_TOL * values[-1]
    return ((spread.T @ vectors) * significant / values.clamp(min=1e-30).sqrt()).float()
