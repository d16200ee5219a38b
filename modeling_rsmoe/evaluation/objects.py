"""Faithfulness and coverage: are the objects that a text mentions there, and does it mention those that are.

Neither needs a reference caption, only human labels of which object classes an image shows. A text mentions a class by
the words of objects.yaml. Over all labelled images, faithfulness is the share of mentioned classes that are labelled
present, coverage the share of present classes that are mentioned.
"""

import functools
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from ..data.labels import OBJECTS_FILE, ObjectRecord
from ..errors_rsmoe import RSMoEError
from .intervals import interval, means
from .scores import Scored


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


def object_labels(records: Iterable[ObjectRecord]) -> dict[Path, ObjectLabels]:
    """The labels of images, as texts are compared with them: without the classes that objects.yaml leaves out, and
    with what a present class implies.

    Args:
        records: as of `read_objects`.

    Raises:
        RSMoEError: an image stands twice.
    """
    labels: dict[Path, ObjectLabels] = {}
    for record in records:
        if record.image in labels:
            raise RSMoEError(f"the objects of {record.image} stand twice in {OBJECTS_FILE}; merge the lines")
        implied = {implied for name, implied in _SETTINGS["implies"].items() if name in record.present}
        present = {*record.present, *implied}
        left_out = {*_SETTINGS["left_out"], *_SETTINGS["left_out_of"].get(record.dataset, [])}
        absent = set(record.absent) - present - left_out
        labels[record.image] = ObjectLabels(frozenset(present - left_out), frozenset(absent))
    return labels


def mentions(text: str, classes: Collection[str]) -> set[str]:
    """Those of some object classes that a text mentions.

    Example:

    ```python
    >>> sorted(mentions("Two boats near some houses.", ["ship", "buildings", "trees"]))
    ['buildings', 'ship']
    ```
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
        notes={
            FAITHFULNESS: "of the labelled object classes that texts mention the share that is there",
            COVERAGE: "of the object classes that are there the share that texts mention",
        },
        resampled=resampled,
    )


def _counts(labels: ObjectLabels, text: str) -> tuple[int, int, int]:
    """Classes that are mentioned and present, mentioned, present."""
    mentioned = mentions(text, labels.all)
    return len(mentioned & labels.present), len(mentioned), len(labels.present)


def object_words(name: str) -> list[str]:
    """The words that mention an object class, singular and plural, the longest first.

    Args:
        name: of a class, as in the labels.
    """
    nouns = _SETTINGS["classes"].get(name, [name.replace("-", " ").replace("_", " ").lower()])
    return sorted({form for noun in nouns for form in _forms(noun)}, key=lambda form: (-len(form), form))


@functools.cache
def _pattern(name: str) -> re.Pattern[str]:
    return re.compile(rf"\b(?:{'|'.join(map(re.escape, object_words(name)))})\b")


def _forms(noun: str) -> list[str]:
    singular, _, plural = noun.partition("/")
    return [singular, plural or f"{singular}s"]
