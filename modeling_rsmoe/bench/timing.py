"""Variants run in rounds, their times, and ratios with their spread. Knows nothing about models."""

import math
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NotRequired, TypedDict

import numpy as np

from ..utils.progress import Progress, no_progress


GROUP_SECONDS = 150.0  # of all rounds of a group, about
Seconds = np.ndarray  # [2]: by the clock, and of the processor (all threads of this process together)


class Times(TypedDict):
    """Seconds of every run of one variant, in the order of the rounds."""

    first: float  # of the first run, by the clock: it warms up (or compiles), and in most groups it does not count
    wall: list[float]
    cpu: list[float]


class Group(TypedDict):
    """Variants that ran in the same rounds."""

    key: str  # by which tables and targets find it
    title: str
    base: str  # the variant that the others are compared with
    times: dict[str, Times]
    captions: NotRequired[int]  # that each run writes
    x: NotRequired[dict[str, float]]  # of a curve: what grows, for each variant


class Spread(TypedDict):
    """A median of all rounds, and the lowest and highest of them."""

    median: float
    low: float
    high: float


def now() -> Seconds:
    """Both clocks, for differences."""
    return np.array([time.perf_counter(), time.process_time()])


def in_rounds(
    variants: Mapping[str, Callable[[], Any]], repeats: int, progress: Progress = no_progress, warm: bool = True
) -> dict[str, Times]:
    """Times of all variants, run in `repeats` rounds: a slow moment hits all alike.

    Where those would take longer than `GROUP_SECONDS` there are fewer, but two where two are wanted. With `warm` there
    is one more round before them, which does not count.
    """
    runs = {name: partial(_timed, run) for name, run in variants.items()}
    phases = phases_in_rounds(runs, repeats, progress, warm, GROUP_SECONDS)
    return {name: times[""] for name, times in phases.items()}


def _timed(run: Callable[[], Any]) -> dict[str, Seconds]:
    began = now()
    run()
    torch: Any = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.synchronize()
    return {"": now() - began}


def phases_in_rounds(
    variants: Mapping[str, Callable[[], Mapping[str, Seconds]]],
    repeats: int,
    progress: Progress = no_progress,
    warm: bool = True,
    limit: float = math.inf,
) -> dict[str, dict[str, Times]]:
    """The same for variants that return the seconds of their phases; all rounds may take `limit` seconds."""
    times: dict[str, dict[str, Times]] = {name: {} for name in variants}
    began, done, rounds = time.perf_counter(), 0, repeats + warm
    while done < rounds:
        for index, (name, run) in enumerate(variants.items()):
            progress(name, done * len(variants) + index, rounds * len(variants))
            for phase, seconds in run().items():
                wall, cpu = map(float, seconds)
                of_phase = times[name].setdefault(phase, {"first": wall, "wall": [], "cpu": []})
                if done or not warm:
                    of_phase["wall"].append(wall)
                    of_phase["cpu"].append(cpu)
        done += 1
        if done == 1:
            affordable = limit / max(time.perf_counter() - began, 1e-9) - warm
            rounds = warm + int(min(repeats, max(2, affordable)))
    return times


def spread(values: list[float]) -> Spread:
    """Median, lowest and highest value."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def seconds(times: Times, clock: str) -> list[float]:
    """Of every counted run, by the clock ("wall") or of the processor ("cpu")."""
    return times["cpu"] if clock == "cpu" else times["wall"]


def ratio(times: Times, base: Times, clock: str = "wall") -> Spread:
    """How many times the base's time a variant took, round by round."""
    return spread([one / other for one, other in zip(seconds(times, clock), seconds(base, clock), strict=True)])


def busy_share(groups: list[Group]) -> float:
    """The share of the measured time in which the processor did something else: near 0 on a quiet machine.

    Only of one thread: with more, the processor's time is more than the clock's.
    """
    times = [times for group in groups for times in group["times"].values()]
    wall, cpu = (sum(sum(seconds(one, clock)) for one in times) for clock in ("wall", "cpu"))
    return max(0.0, 1 - cpu / wall) if wall else 0.0
