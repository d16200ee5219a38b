"""What every metric of this package returns: scores of a whole set with their intervals, and of each item alone."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Score:
    """A score times 100 and the bounds of its bootstrap 95 % interval."""

    value: float
    low: float
    high: float


Scores = dict[str, Score]


@dataclass(frozen=True)
class Scored:
    """Scores of one set of predictions."""

    scores: Scores  # of the whole set, in the order to print
    each: list[dict[str, float]]  # the same metrics for each item (image or question) alone, in the items' order
    missing: dict[str, str] = field(default_factory=dict)  # why a metric could not be computed, by its name
    notes: dict[str, str] = field(default_factory=dict)  # how the scores were made, for example with which tokenizer
    # The scores of each bootstrap sample, where a difference between two systems is not a mean over items. Two systems
    # on the same items have the same samples.
    resampled: Mapping[str, npt.NDArray[np.float64]] = field(default_factory=dict)
