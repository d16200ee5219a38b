"""Bootstrap 95 % percentile intervals: of a mean, of a difference between two systems, of any score made from sums.

Items (images or questions) are drawn with replacement, as many as there are, and the score is computed anew from the
sums over the drawn items (Koehn 2004, "Statistical Significance Tests for Machine Translation Evaluation"). The same
seed and number of items draw the same items, so scores of one set of items vary together.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ..errors_rsmoe import RSMoEError
from .scores import Score


Array = npt.NDArray[np.float64]

BOUNDS = (2.5, 97.5)  # percentiles between which 95 % of the resampled scores lie


def mean_interval(values: Sequence[float], samples: int = 1000, seed: int = 0) -> Score:
    """The mean of fractions (1 = right, 0 = wrong) with its interval, times 100. The items' order changes nothing.

    Args:
        values: of the items.
        samples: how many times to draw.
        seed: of the draw.

    Raises:
        RSMoEError: when there is no value, or ``samples`` is below 1.
    """
    # Sorted, because items are drawn by place.
    numbers = np.sort(np.asarray(values, dtype=np.float64))[:, None]
    return interval(100 * float(numbers.mean()) if len(numbers) else 0.0, 100 * means(numbers, samples, seed)[:, 0])


def paired_difference(ours: Sequence[float], theirs: Sequence[float], samples: int = 1000, seed: int = 0) -> Score:
    """By how much our mean is above theirs on the same items, with the interval of that difference.

    Ours is better beyond chance where ``low`` is above 0. Both are resampled together: most of what makes an item easy
    or hard goes away in the difference, so this interval is much narrower than those of the two systems suggest.

    Args:
        ours: scores of the items, times 100, as they stand in ``Scored.each``; of several datasets, one after the
            other.
        theirs: likewise, in the same order.
        samples: how many times to draw.
        seed: of the draw.

    Returns:
        The difference and its bounds in the units of the scores given.

    Raises:
        RSMoEError: when the numbers of items differ or are 0, or ``samples`` is below 1.
    """
    if len(ours) != len(theirs):
        raise RSMoEError(f"{len(ours)} scores of ours against {len(theirs)} of theirs; score the same items with both")
    difference = np.asarray(ours, dtype=np.float64) - np.asarray(theirs, dtype=np.float64)
    return mean_interval((difference / 100).tolist(), samples, seed)


def interval(value: float, resampled: npt.ArrayLike) -> Score:
    """A score with its percentile interval.

    Args:
        value: of the score.
        resampled: values of the score, in the same units.
    """
    low, high = np.percentile(np.asarray(resampled, dtype=np.float64), BOUNDS)
    return Score(value, float(low), float(high))


def means(statistics: npt.NDArray[np.generic], samples: int, seed: int) -> Array:
    """Means of statistics over drawn items.

    Args:
        statistics: ``[items, k]``: the numbers of each item that a score is made from.
        samples: how many times to draw.
        seed: of the draw.

    Returns:
        ``[samples, k]``.

    Raises:
        RSMoEError: when there is no item, or ``samples`` is below 1.
    """
    items = len(statistics)
    if items == 0:
        raise RSMoEError("no item to score; an interval needs at least one")
    if samples < 1:
        raise RSMoEError(f"{samples} bootstrap samples; give at least 1 (1000 is usual)")
    generator = np.random.default_rng(seed)
    numbers = statistics.astype(np.float64)
    # One draw at a time: the counts of all draws together would not fit into memory for a large set of questions.
    drawn = (np.bincount(generator.integers(items, size=items), minlength=items) for _ in range(samples))
    return np.stack([counts @ numbers for counts in drawn]) / items
