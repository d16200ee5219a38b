"""Let what an image looks like choose among captions: how much is there to gain in what full model and LLM block say?

    rsmoe evaluate nano --data DATA --split val --output full.json
    rsmoe evaluate nano --data DATA --split val --as llm --output llm.json
    python examples/train_chooser.py nano DATA full.jsonl llm.jsonl --output chosen.jsonl
    rsmoe evaluate --data DATA --split val --predictions chosen.jsonl --output chosen.json --against llm.jsonl

A ridge regression from the frozen ViT's features of an image (its class token, mean and spread of its patches) to the
n-grams of its captions, weighted and scaled as in CIDEr, is fitted on the train images. Of an image's candidates (captions,
and the experts' parts) the one is taken whose n-grams are most like the predicted ones: about the CIDEr that it would
have. A tenth of the train images, held out, chooses the strength of the ridge; no other image is looked at for it.
"""

import argparse
import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from modeling_rsmoe import RSMoEForConditionalGeneration, RSMoEProcessor
from modeling_rsmoe.data.files import cache_folder, write_whole
from modeling_rsmoe.data.records import read_captions
from modeling_rsmoe.training.features import FeatureCache


LONGEST = 4  # words of an n-gram
LEAST = 3  # train images that an n-gram that is predicted stands in
RIDGES = (0.003, 0.01, 0.03, 0.1, 0.3)
TENTH = 10


def main(argv: list[str] | None = None) -> dict[str, str]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("data", type=Path, help="a data folder with captions.jsonl")
    parser.add_argument("predictions", type=Path, nargs="+", help="of `rsmoe evaluate`, of the same images")
    parser.add_argument("--output", type=Path, required=True, help="JSONL of the chosen captions")
    parser.add_argument(
        "--without", nargs="*", default=[], metavar="NAME", help="no candidates: composed, alone, or an expert's part"
    )
    parser.add_argument("--features", type=Path, default=cache_folder() / "features", help="folder of image features")
    given = parser.parse_args(argv)
    candidates = read_candidates(given.predictions, given.without)
    datasets = sorted({dataset for dataset, _ in candidates.values()})
    records = read_captions(given.data.absolute(), "train", datasets)
    ngrams = NGrams([record.captions for record in records])
    model = RSMoEForConditionalGeneration.from_pretrained(given.checkpoint, dtype=torch.float32).eval()
    cache = FeatureCache(given.features, model, RSMoEProcessor.from_pretrained(given.checkpoint))
    images = [given.data.absolute() / image for image in candidates]
    cache.add([*(record.image for record in records), *images], tell())
    seen = looks(cache, [record.image for record in records])
    mean, spread = seen.mean(0), seen.std(0) + 1e-6
    seen, asked = (seen - mean) / spread, (looks(cache, images) - mean) / spread
    texts = ngrams.means([record.captions for record in records])
    held_out = torch.arange(len(records)) % TENTH == 0
    found = {ridge: likeness(seen, texts, held_out, ridge) for ridge in RIDGES}
    ridge = max(found, key=lambda value: found[value])
    print(
        "likeness of held-out train images' captions to those predicted:", {r: round(v, 4) for r, v in found.items()}
    )
    predicted = Readout(seen, texts, ridge)(asked)
    chosen, lines = {}, []
    for (image, (dataset, some)), wanted in zip(candidates.items(), predicted, strict=True):
        chosen[image] = max(some, key=lambda text: ngrams.likeness(text, wanted))
        lines.append(json.dumps({"image": image, "dataset": dataset, "caption": chosen[image]}))
    write_whole(given.output, "\n".join(lines) + "\n")
    weights = texts.shape[1] * seen.shape[1]
    print(f"{len(chosen)} captions chosen; ridge {ridge}, {len(records)} train images, {weights / 1e6:.1f} M weights")
    return chosen


def read_candidates(files: Sequence[Path], without: Sequence[str]) -> dict[str, tuple[str, list[str]]]:
    """Image -> dataset and the different texts that any of the files has for it; only images that all files have."""
    found: dict[str, tuple[str, list[str]]] = {}
    times: Counter[str] = Counter()
    for file in files:
        for line in map(json.loads, file.read_text(encoding="utf-8").splitlines()):
            parts = line.get("parts", {})
            texts = {"composed" if parts else "alone": line["caption"], **parts}
            _, known = found.setdefault(line["image"], (line["dataset"], []))
            known += [text for name, text in texts.items() if name not in without and text not in known]
            times[line["image"]] += 1
    return {image: entry for image, entry in found.items() if times[image] == len(files)}


class NGrams:
    """Texts as CIDEr sees them: weights (tf-idf) of 1- to 4-grams, those of each n scaled so that a product of two texts is
    the mean over n of their cosines.

    Args:
        groups: the captions of each train image.
    """

    def __init__(self, groups: Sequence[Sequence[str]]):
        self.images = len(groups)
        self.frequency = Counter(gram for group in groups for gram in {g for text in group for g in _grams(text)})
        self.place = {g: i for i, g in enumerate(g for g, count in self.frequency.items() if count >= LEAST)}

    def vector(self, text: str) -> dict[int, float]:
        """Place -> weight; n-grams that are too rare to be predicted count for the length only."""
        weights: list[dict[tuple[str, ...], float]] = [{} for _ in range(LONGEST)]
        for gram, count in _grams(text).items():
            weights[len(gram) - 1][gram] = count * math.log(self.images / max(1, self.frequency[gram]))
        vector = {}
        for some in weights:
            length = math.sqrt(sum(weight**2 for weight in some.values()) * LONGEST)
            vector |= {
                self.place[gram]: weight / length for gram, weight in some.items() if length and gram in self.place
            }
        return vector

    def means(self, groups: Sequence[Sequence[str]]) -> torch.Tensor:
        """[groups, n-grams], sparse: the mean vector of each group's texts."""
        cells: Counter[tuple[int, int]] = Counter()
        for row, group in enumerate(groups):
            for text in group:
                for place, weight in self.vector(text).items():
                    cells[row, place] += weight / len(group)
        places = torch.tensor(list(cells)).T
        return torch.sparse_coo_tensor(
            places, torch.tensor(list(cells.values())), (len(groups), len(self.place)), check_invariants=True
        ).coalesce()

    def likeness(self, text: str, wanted: torch.Tensor) -> float:
        vector = self.vector(text)
        return float(wanted[list(vector)] @ torch.tensor(list(vector.values()))) if vector else 0.0


def _grams(text: str) -> Counter[tuple[str, ...]]:
    words = re.findall(r"\w+", text.lower())
    return Counter(tuple(words[i : i + n]) for n in range(1, LONGEST + 1) for i in range(len(words) - n + 1))


def looks(cache: FeatureCache, images: Sequence[Path]) -> torch.Tensor:
    """[images, 3 x width]: class token, mean and spread of the patches."""
    rows = []
    for start in range(0, len(images), 64):
        values = cache(images[start : start + 64])
        rows.append(torch.cat([values[:, 0], values[:, 1:].mean(1), values[:, 1:].std(1)], dim=1))
    return torch.cat(rows)


class Readout:
    """Features [images, width] of mean 0 -> predicted n-grams [images, n-grams]."""

    def __init__(self, seen: torch.Tensor, texts: torch.Tensor, ridge: float):
        square = seen.T @ seen / len(seen) + ridge * torch.eye(seen.shape[1])
        self.weights = torch.linalg.solve(square, torch.sparse.mm(texts.t(), seen).T / len(seen))
        self.mean = torch.sparse.sum(texts, 0).to_dense() / len(seen)

    def __call__(self, asked: torch.Tensor) -> torch.Tensor:
        return asked @ self.weights + self.mean


def likeness(seen: torch.Tensor, texts: torch.Tensor, held_out: torch.Tensor, ridge: float) -> float:
    """How like a held-out image's captions are to those of the other images that the readout takes for it."""
    rest, own = (texts.index_select(0, part.nonzero().squeeze(1)).coalesce() for part in (~held_out, held_out))
    predicted = Readout(seen[~held_out], rest, ridge)(seen[held_out])
    taken = torch.sparse.mm(rest, predicted.T).argmax(0)
    return (rest.index_select(0, taken).to_dense() * own.to_dense()).sum(1).mean().item()


def tell():
    bar = tqdm(total=100, leave=False)

    def progress(message: str, share: float | None) -> None:
        bar.set_description(message)
        bar.update(round(100 * (share or 0)) - bar.n)

    return progress


if __name__ == "__main__":
    main()
