"""What probabilities of being right are worth: whether they put right before wrong, and are true shares."""

import numpy as np

from .intervals import Array


BINS = 10


def auroc(scores: Array, is_right: Array) -> float:
    """How often, in %, something right has a higher score than something wrong; 50 is a coin.

    Args:
        scores: [items], of any scale.
        is_right: [items], of 0 and 1.

    Returns:
        Not a number where all items are of one kind.

    Example:

    ```python
    >>> import numpy as np
    >>> auroc(np.array([0.9, 0.2, 0.4]), np.array([1, 0, 1]))
    100.0
    ```
    """
    right, wrong = np.sort(scores[is_right > 0]), scores[is_right <= 0]
    if not len(right) or not len(wrong):
        return float("nan")
    above = len(right) - np.searchsorted(right, wrong, side="right")
    equal = np.searchsorted(right, wrong, side="right") - np.searchsorted(right, wrong, side="left")
    return 100 * float((above + equal / 2).mean() / len(right))


def calibration_error(probabilities: Array, is_right: Array) -> float:
    """By how much, in %, a probability differs on average from the share that is right: the expected calibration error
    over ten bins of equally many items.

    Args:
        probabilities: [items], from 0 to 1.
        is_right: [items], of 0 and 1.
    """
    order = np.argsort(probabilities, kind="stable")
    bins = [part for part in np.array_split(order, BINS) if len(part)]
    gaps = [len(part) * abs(probabilities[part].mean() - is_right[part].mean()) for part in bins]
    return 100 * float(sum(gaps) / len(order))
