"""What probabilities of being right are worth, on cases that can be counted by hand."""

import numpy as np
import pytest

from modeling_rsmoe.evaluation.calibration import auroc, calibration_error


def test_auroc_counts_pairs_in_order() -> None:
    """Of six pairs of a right and a wrong item: three in order, one equal, two the wrong way round."""
    scores, is_right = np.array([0.9, 0.5, 0.2, 0.5, 0.1]), np.array([1, 1, 0, 0, 1])
    assert auroc(scores, is_right) == pytest.approx(100 * 3.5 / 6)
    assert auroc(-scores, is_right) == pytest.approx(100 * 2.5 / 6)
    assert np.isnan(auroc(scores, np.ones(5)))


def test_calibration_error_is_the_mean_gap_of_the_bins() -> None:
    """Twenty items in ten bins of two: half of those at 0.8 are right, all of those at 0.2 are wrong."""
    probabilities = np.array([0.2] * 10 + [0.8] * 10)
    is_right = np.array([0] * 10 + [1, 0] * 5)
    assert calibration_error(probabilities, is_right) == pytest.approx(100 * (0.2 + 0.3) / 2)
    assert calibration_error(np.array([1.0, 0.0]), np.array([1, 0])) == 0
