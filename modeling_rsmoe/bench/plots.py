"""Curves and bars of a bench as one picture."""

from pathlib import Path
from typing import Any

from ..utils.extras import require
from ..utils.files import whole_file
from .names import BLOCK, FULL, TEMPLATE
from .results import Results, group_of
from .timing import Times, seconds, spread


CURVES = (
    ("growth: experts", "experts", "1 image, by number of experts"),
    ("images", "images in one batch", "by number of images"),
    ("growth: tokens", "new tokens a part", "1 image, by length of parts"),
    ("growth: image tokens", "image tokens", "1 image, by its tokens"),
    ("growth: threads", "threads", "1 image, by threads"),
)
WHO = {BLOCK: ("C0", "o"), FULL: ("C1", "s"), TEMPLATE: ("C2", "^")}
Points = dict[str, list[tuple[float, Times]]]


def plot(results: Results, file: Path, clock: str = "wall") -> bool:
    """One panel for each curve that was measured, median with lowest and highest, and the latencies; whole or not at all.

    Returns:
        Whether there was anything to draw.
    """
    curves = [(points, x, title) for key, x, title in CURVES if (points := _points(results, key))]
    latency = group_of(results, "latency")
    panels = len(curves) + (latency is not None)
    if not panels:
        return False
    require("matplotlib", "train").use("Agg")
    import matplotlib.pyplot as plt

    rows = -(-panels // 3)
    figure, axes = plt.subplots(rows, min(3, panels), figsize=(4.6 * min(3, panels), 3.6 * rows), squeeze=False)
    places = list(axes.flat)
    for place in places[panels:]:
        place.set_visible(False)
    if latency is not None:
        _bars(places.pop(0), latency["times"], clock)
    for place, (points, x, title) in zip(places, curves):
        _curve(place, points, x, title, clock)
    threads = results["machine"]["threads"]
    figure.suptitle(f"{results['checkpoint']['name']}, {threads} thread{'s' if threads > 1 else ''}")
    figure.tight_layout()
    with whole_file(file) as part:
        figure.savefig(part, dpi=110, format="png", bbox_inches="tight")  # long names stand outside
    plt.close(figure)
    return True


def _points(results: Results, key: str) -> Points:
    """Where each contender stands, by what grows."""
    found: Points = {}
    if key == "images":
        section = results["sections"].get("throughput")
        for of_count in section["groups"] if section else []:
            for name, times in of_count["times"].items():
                found.setdefault(name, []).append((of_count["captions"], times))
        return found
    group = group_of(results, key)
    if group is not None:
        for name, x in group["x"].items():
            who = next(known for known in WHO if name == known or name.startswith(f"{known}, "))
            found.setdefault(who, []).append((x, group["times"][name]))
    return found


def _curve(place: Any, points: Points, x: str, title: str, clock: str) -> None:
    for name, of_name in points.items():
        color, marker = WHO[name]
        found = [spread(seconds(times, clock)) for _, times in of_name]
        middle = [one["median"] for one in found]
        below = [one["median"] - one["low"] for one in found]
        above = [one["high"] - one["median"] for one in found]
        values = [value for value, _ in of_name]
        place.errorbar(
            values, middle, yerr=[below, above], label=name, color=color, marker=marker, markersize=4, capsize=2
        )
    place.set(xlabel=x, ylabel="seconds", title=title)
    place.set_ylim(bottom=0)
    place.legend(fontsize=7)


def _bars(place: Any, times: dict[str, Times], clock: str) -> None:
    found = {name: spread(seconds(own, clock)) for name, own in times.items()}
    middle = [one["median"] for one in found.values()]
    errors = [
        [one["median"] - one["low"] for one in found.values()],
        [one["high"] - one["median"] for one in found.values()],
    ]
    place.barh(list(found), middle, xerr=errors, color="C1", capsize=2)
    place.invert_yaxis()
    place.tick_params(axis="y", labelsize=7)
    place.set(xlabel="seconds", title="1 image, by mode")
