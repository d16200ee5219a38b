"""Contenders run in turn, their times, and ratios with their spread. Knows nothing about models."""

import statistics
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, NotRequired, TypedDict


GROUP_SECONDS = 150.0  # of all turns of a group, about
Tell = Callable[[str, float], None]  # what is running, and the share of this measurement that is done


class Times(TypedDict):
    """Seconds of every run of one contender, in the order of the turns."""

    first: float  # of the first run, by the clock: it warms up (or compiles), and in most groups it does not count
    wall: list[float]  # by the clock
    cpu: list[float]  # of the processor, all threads of this process together


class Group(TypedDict):
    """Contenders that took turns."""

    key: str  # by which tables and targets find it
    title: str
    base: str  # the contender that the others are compared with
    times: dict[str, Times]
    captions: NotRequired[int]  # that each run made
    x: NotRequired[dict[str, float]]  # of a curve: what grows, for each contender


class Spread(TypedDict):
    """A median of all turns, and the lowest and highest of them."""

    median: float
    low: float
    high: float


def in_turns(
    contenders: Mapping[str, Callable[[], Any]], repeats: int, tell: Tell, warm: bool = True
) -> dict[str, Times]:
    """Run all contenders in turn, `repeats` times: a slow moment hits all alike.

    Where that would take longer than `GROUP_SECONDS`, there are fewer turns, but two where two are asked for.

    Args:
        warm: run each once before the turns, uncounted.
    """
    found: dict[str, Times] = {name: {"first": 0.0, "wall": [], "cpu": []} for name in contenders}
    began, turn, turns = time.perf_counter(), 0, repeats + warm
    while turn < turns:
        for index, (name, run) in enumerate(contenders.items()):
            tell(name, (turn + index / len(contenders)) / turns)
            wall, cpu = _timed(run)
            times = found[name]
            times["first"] = times["first"] or wall
            if turn or not warm:
                times["wall"].append(wall)
                times["cpu"].append(cpu)
        turn += 1
        if turn == 1:
            affordable = int(GROUP_SECONDS / max(time.perf_counter() - began, 1e-9))
            turns = warm + min(repeats, max(2, affordable - warm))
    return found


def _timed(run: Callable[[], Any]) -> tuple[float, float]:
    """Seconds by the clock and of the processor."""
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    _finish()
    return time.perf_counter() - wall, time.process_time() - cpu


def _finish() -> None:
    """Until a GPU has done what it was told."""
    torch: Any = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.synchronize()


def spread(values: list[float]) -> Spread:
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def seconds(times: Times, clock: str) -> list[float]:
    """Of every counted run, by the clock ("wall") or of the processor ("cpu")."""
    return times["cpu"] if clock == "cpu" else times["wall"]


def ratio(times: Times, base: Times, clock: str = "wall") -> Spread:
    """How many times the base's time a contender took, turn by turn."""
    pairs = zip(seconds(times, clock), seconds(base, clock), strict=True)
    return spread([one / other for one, other in pairs])


def busy_share(groups: list[Group]) -> float:
    """The share of the measured time in which the processor did something else: near 0 on a quiet machine.

    Only of one thread: with more, the processor's time is more than the clock's.
    """
    pairs = [(t["wall"], t["cpu"]) for group in groups for t in group["times"].values()]
    wall, cpu = sum(sum(one) for one, _ in pairs), sum(sum(other) for _, other in pairs)
    return max(0.0, 1 - cpu / wall) if wall else 0.0
