"""Rounds, spreads and ratios."""

import time
from types import SimpleNamespace

import pytest

from modeling_rsmoe.bench import timing
from modeling_rsmoe.bench.timing import busy_share, in_rounds, ratio, spread

from .results import group, times


def test_variants_run_in_rounds_and_the_first_round_does_not_count():
    order, reported = [], []
    variants = {name: lambda name=name: order.append(name) for name in "abc"}
    found = in_rounds(variants, 2, lambda name, done, total: reported.append((name, done / total)))
    assert order == list("abc") * 3
    assert [len(times["wall"]) for times in found.values()] == [2, 2, 2] and list(found) == list("abc")
    assert [name for name, _ in reported] == order and reported[0][1] == 0 and reported[-1][1] == pytest.approx(8 / 9)


def test_without_warming_every_round_counts():
    order = []
    found = in_rounds({"a": lambda: order.append("a")}, 3, warm=False)
    assert order == ["a"] * 3 and len(found["a"]["wall"]) == 3 and found["a"]["first"] == found["a"]["wall"][0]


@pytest.mark.parametrize("repeats, warm, runs", [(9, True, 4), (9, False, 4), (1, True, 2), (1, False, 1)])
def test_long_groups_have_fewer_rounds(monkeypatch, repeats, warm, runs):
    """Four fit into the time that a group may take; without it there would be 9."""
    monkeypatch.setattr(timing, "GROUP_SECONDS", 0.23)
    order = []
    clock = SimpleNamespace(perf_counter=lambda: 0.05 * len(order), process_time=lambda: 0.0)
    monkeypatch.setattr(timing, "time", clock)  # each run takes 0.05 s, however busy the machine is

    def run():
        order.append(1)

    found = in_rounds({"a": run}, repeats, warm=warm)
    assert len(order) == runs and len(found["a"]["wall"]) == runs - warm


def test_two_rounds_there_are(monkeypatch):
    monkeypatch.setattr(timing, "GROUP_SECONDS", 1e-9)
    found = in_rounds({"a": lambda: time.sleep(0.001)}, 5)
    assert len(found["a"]["wall"]) == 2


def test_both_clocks(monkeypatch):
    """A variant that sleeps costs no processor time."""
    clock = {"wall": 10.0, "cpu": 1.0}

    def passes(**seconds):
        for name, more in seconds.items():
            clock[name] += more

    both = SimpleNamespace(perf_counter=lambda: clock["wall"], process_time=lambda: clock["cpu"])
    monkeypatch.setattr(timing, "time", both)
    found = in_rounds({"sleeps": lambda: passes(wall=0.5), "works": lambda: passes(wall=0.5, cpu=0.25)}, 1)
    assert found["sleeps"] == {"first": 0.5, "wall": [0.5], "cpu": [0]}
    assert found["works"] == {"first": 0.5, "wall": [0.5], "cpu": [0.25]}


def test_ratios_are_of_the_same_round():
    """A slow round of the machine slows both, and leaves the ratio alone."""
    slow = ratio(times(2, 20, 2.2), times(1, 10, 1))
    assert slow == {"median": 2, "low": 2, "high": 2.2}
    assert spread([3, 1, 2]) == {"median": 2, "low": 1, "high": 3}
    with pytest.raises(ValueError):
        ratio(times(1, 2), times(1))


def test_a_busy_machine_is_seen():
    assert busy_share([group("a", "x", times={"x": times(1, 2), "y": times(3)})]) == 0.5
    assert busy_share([]) == 0
