"""Bootstrap intervals: right in cases that can be worked out, the same for the same seed, narrower for pairs."""

import numpy as np
import pytest

from modeling_rsmoe.errors_rsmoe import RSMoEError
from modeling_rsmoe.evaluation.intervals import interval, mean_interval, means, paired_difference
from modeling_rsmoe.evaluation.scores import Score


def test_the_interval_of_a_proportion_is_that_of_the_normal_approximation():
    values = [1.0] * 300 + [0.0] * 700
    score = mean_interval(values, samples=4000)
    half = 1.96 * 100 * (0.3 * 0.7 / 1000) ** 0.5  # 2.84
    assert score.value == pytest.approx(30)
    assert score.low == pytest.approx(30 - half, abs=0.25)
    assert score.high == pytest.approx(30 + half, abs=0.25)


def test_equal_values_have_no_width():
    assert mean_interval([0.25] * 7, samples=50) == Score(25, 25, 25)


def test_the_seed_decides_and_the_order_does_not():
    values = np.random.default_rng(3).random(200).tolist()
    score = mean_interval(values, samples=200, seed=1)
    assert mean_interval(values[::-1], samples=200, seed=1) == score
    assert mean_interval(values, samples=200, seed=2) != score


def test_a_difference_of_pairs_is_narrower_than_the_systems_themselves():
    generator = np.random.default_rng(0)
    easy = 100 * generator.random(300)
    ours, theirs = easy + 2 + generator.random(300), easy
    difference = paired_difference(ours.tolist(), theirs.tolist())
    assert difference.value == pytest.approx((ours - theirs).mean())
    assert difference.low > 2
    alone = mean_interval((ours / 100).tolist())
    assert difference.high - difference.low < (alone.high - alone.low) / 10
    back = paired_difference(theirs.tolist(), ours.tolist())
    assert back.value == pytest.approx(-difference.value)
    assert back.high < 0


def test_systems_that_do_not_differ_have_zero_inside():
    generator = np.random.default_rng(1)
    one, other = generator.random((2, 400)) * 100
    difference = paired_difference(one.tolist(), other.tolist())
    assert difference.low < 0 < difference.high


def test_means_are_of_whole_drawn_items():
    statistics = np.arange(20).reshape(10, 2)
    drawn = np.random.default_rng(5).integers(10, size=10)
    resampled = means(statistics, samples=30, seed=5)
    assert resampled.shape == (30, 2)
    assert resampled[0] == pytest.approx(statistics[drawn].mean(0))
    assert resampled[:, 1] - resampled[:, 0] == pytest.approx(np.ones(30))


def test_an_interval_has_the_middle_95_percent():
    assert interval(1.0, np.arange(1001)) == Score(1.0, 25.0, 975.0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mean_interval([]), "no item to score"),
        (lambda: mean_interval([1.0], samples=0), "0 bootstrap samples; give at least 1"),
        (lambda: paired_difference([1.0, 2.0], [1.0]), "2 scores of ours against 1 of theirs"),
        (lambda: paired_difference([], []), "no item to score"),
    ],
)
def test_what_has_no_interval_is_refused(call, message):
    with pytest.raises(RSMoEError, match=message):
        call()
