"""Faithfulness and coverage: are the objects that a text mentions there, and does it mention those that are.

Neither needs a reference caption, only human labels of which object classes an image shows. A text mentions a class by
the words of objects.yaml. Over all labelled images, faithfulness is the share of mentioned classes that are labelled
present, coverage the share of present classes that are mentioned.
"""

import functools
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from ..errors_rsmoe import RSMoEError
from ..utils.files import check_input, parse_json
from .intervals import interval, means
from .scores import Scored


OBJECTS_FILE = "objects.jsonl"  # in a data folder
FAITHFULNESS, COVERAGE = "faithfulness", "coverage"
_SETTINGS: dict[str, Any] = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))


@dataclass(frozen=True)
class ObjectLabels:
    """The object classes that people saw in an image, and those that they did not."""

    present: frozenset[str]
    absent: frozenset[str]

    @property
    def all(self) -> frozenset[str]:
        """The classes that were labelled either way."""
        return self.present | self.absent


def read_objects(folder: Path) -> dict[Path, ObjectLabels]:
    """The labels of a data folder's ``objects.jsonl`` by absolute image path; empty without such a file.

    A line has `image` (relative to the folder), `present` and `absent` (lists of classes), and may have `dataset`.
    Classes that objects.yaml leaves out are dropped.

    Args:
        folder: the data folder.

    Raises:
        RSMoEError: a line is no such object, a class is both present and absent, or an image stands twice.
    """
    file = folder / OBJECTS_FILE
    if not file.exists():
        return {}
    check_input(file, "object labels")
    labels: dict[Path, ObjectLabels] = {}
    for number, raw in enumerate(file.read_bytes().splitlines(), start=1):
        if raw.strip():
            image, of_image = _labels(raw, f"{file}:{number}")
            image_path = folder.absolute() / image
            if image_path in labels:
                raise RSMoEError(f'{file}:{number}: image "{image}" stands twice; merge its lines')
            labels[image_path] = of_image
    return labels


def mentions(text: str, classes: Collection[str]) -> set[str]:
    """Those of some object classes that a text mentions.

    >>> sorted(mentions("Two boats near some houses.", ["ship", "buildings", "trees"]))
    ['buildings', 'ship']
    """
    words = " ".join(re.findall(r"\w+", text.lower()))
    return {name for name in classes if _pattern(name).search(words)}


def score_mentions(labels: Sequence[ObjectLabels], texts: Sequence[str], samples: int = 1000, seed: int = 0) -> Scored:
    """Faithfulness and coverage of texts, times 100, with bootstrap intervals over images.

    Args:
        labels: of the images.
        texts: one for each image.
        samples: of the bootstrap.
        seed: of the bootstrap.

    Returns:
        The scores of all; those of an image alone as far as it mentions, or shows, a class; the drawn scores.

    Raises:
        RSMoEError: no image.
    """
    counts = np.array([_counts(*pair) for pair in zip(labels, texts, strict=True)], dtype=np.float64).reshape(-1, 3)
    drawn = means(counts, samples, seed)  # [samples, 3]: right, mentioned, present
    places = {name: 1 + place for place, name in enumerate((FAITHFULNESS, COVERAGE)) if counts[:, 1 + place].any()}
    with np.errstate(invalid="ignore", divide="ignore"):
        resampled = {name: np.nan_to_num(100 * drawn[:, 0] / drawn[:, place]) for name, place in places.items()}
    right = counts[:, 0].sum()
    return Scored(
        scores={
            name: interval(100 * float(right / counts[:, place].sum()), resampled[name])
            for name, place in places.items()
        },
        each=[{name: 100 * row[0] / row[place] for name, place in places.items() if row[place]} for row in counts],
        missing={} if FAITHFULNESS in places else {FAITHFULNESS: "no text mentions a labelled object"},
        notes={FAITHFULNESS: f"by the object labels of {len(counts)} images, as coverage is"},
        resampled=resampled,
    )


def _counts(labels: ObjectLabels, text: str) -> tuple[int, int, int]:
    """Classes that are mentioned and present, mentioned, present."""
    mentioned = mentions(text, labels.all)
    return len(mentioned & labels.present), len(mentioned), len(labels.present)


def _labels(raw: bytes, where: str) -> tuple[str, ObjectLabels]:
    try:
        line = parse_json(raw)
        lists: Mapping[str, Any] = {name: line[name] for name in ("present", "absent")}
        is_right = isinstance(line["image"], str) and all(
            isinstance(names, list) and all(isinstance(name, str) for name in names) for names in lists.values()
        )
    except (ValueError, KeyError, TypeError):
        is_right = False
    if not is_right:
        raise RSMoEError(f"{where}: object labels are an object with image, and present and absent: lists of classes")
    present, absent = (set(names) for names in lists.values())
    if both := sorted(present & absent):
        raise RSMoEError(f'{where}: "{both[0]}" is both present and absent; drop it from one of them')
    present |= {implied for name, implied in _SETTINGS["implies"].items() if name in present}
    left_out = {*_SETTINGS["left_out"], *_SETTINGS["left_out_of"].get(line.get("dataset"), [])}
    return line["image"], ObjectLabels(frozenset(present - left_out), frozenset(absent - present - left_out))


@functools.cache
def _pattern(name: str) -> re.Pattern[str]:
    nouns = _SETTINGS["classes"].get(name, [name.replace("-", " ").replace("_", " ").lower()])
    forms = sorted({form for noun in nouns for form in _forms(noun)}, key=len, reverse=True)
    return re.compile(rf"\b(?:{'|'.join(map(re.escape, forms))})\b")


def _forms(noun: str) -> list[str]:
    singular, _, plural = noun.partition("/")
    return [singular, plural or f"{singular}s"]
