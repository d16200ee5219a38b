"""Curves and bars of a bench as one image file, which reads on a light page and on a dark one."""

from pathlib import Path
from textwrap import fill
from typing import Any

from ..utils.extras import require
from ..utils.files import whole_file
from .names import BASE, FULL, TEMPLATE, count
from .results import Results, group_of
from .timing import Times, seconds, spread


CURVES = (  # key, x axis, title
    ("growth: experts", "experts", "1 image, by number of experts"),
    ("images", "images in one batch", "by number of images"),
    ("growth: tokens", "new tokens per text", "1 image, by length of texts"),
    ("growth: image tokens", "image tokens", "1 image, by its tokens"),
    ("growth: threads", "threads", "1 image, by threads"),
)
STYLES = {BASE: ("#3b82c4", "o"), FULL: ("#d9822b", "s"), TEMPLATE: ("#3f9c56", "^")}
INK = "#747c87"  # of texts and axes: between white pages and dark ones
LOOK: Any = dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK)
LOOK |= {"axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "rsmoe"}
Points = dict[str, list[tuple[float, Times]]]  # by variant: what grows, and the times there


def plot(results: Results, file: Path, clock: str = "wall") -> bool:
    """Draw a panel for each curve that was measured, median with lowest and highest, and one of the latencies.

    Args:
        file: .svg or .png.

    Returns:
        Whether there was anything to draw; else no file is written.
    """
    curves = [(points, x_label, title) for key, x_label, title in CURVES if (points := _points(results, key))]
    latency = group_of(results, "latency")
    panels = len(curves) + (latency is not None)
    if not panels:
        return False
    require("matplotlib", "train").use("Agg")
    import matplotlib.pyplot as plt

    lines, columns = -(-panels // 2), min(2, panels)
    with plt.rc_context(LOOK):
        figure, grid = plt.subplots(lines, columns, figsize=(5 * columns, 3.4 * lines), squeeze=False)
        axes = list(grid.flat)
        for unused in axes[panels:]:
            unused.set_visible(False)
        if latency is not None:
            _bars(axes.pop(0), latency["times"], clock)
        for axis, (points, x_label, title) in zip(axes, curves):
            _curve(axis, points, clock)
            axis.set(xlabel=x_label, ylabel="seconds", title=title)
        figure.suptitle(f"{results['checkpoint']['name']}, {count(results['machine']['threads'], 'thread')}")
        figure.tight_layout()
        with whole_file(file) as path:
            # The same results make the same file: no date. Long names stand outside.
            metadata = {"Date": None} if file.suffix == ".svg" else {}
            figure.savefig(path, dpi=110, transparent=True, bbox_inches="tight", metadata=metadata)
    plt.close(figure)
    return True


def _points(results: Results, key: str) -> Points:
    """The times of each variant, by what grows."""
    points: Points = {}
    if key == "images":
        section = results["sections"].get("throughput")
        for group in section["groups"] if section else []:
            for name, times in group["times"].items():
                points.setdefault(name, []).append((group["captions"], times))
    elif (curve := group_of(results, key)) is not None:
        for name, x in curve["x"].items():
            variant = next(known for known in STYLES if f"{name}, ".startswith(f"{known}, "))
            points.setdefault(variant, []).append((x, curve["times"][name]))
    return points


def _medians(times: list[Times], clock: str) -> tuple[list[float], list[list[float]]]:
    """Medians, and how far the lowest and the highest lie from them."""
    spreads = [spread(seconds(of_variant, clock)) for of_variant in times]
    below = [one["median"] - one["low"] for one in spreads]
    return [one["median"] for one in spreads], [below, [one["high"] - one["median"] for one in spreads]]


def _curve(axis: Any, points: Points, clock: str) -> None:
    for name, of_variant in points.items():
        medians, errors = _medians([times for _, times in of_variant], clock)
        style: dict[str, Any] = dict(zip(("color", "marker"), STYLES[name]))
        axis.errorbar([x for x, _ in of_variant], medians, errors, label=name, markersize=4, capsize=2, **style)
    axis.set_ylim(bottom=0)
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.legend(fontsize=7, frameon=False)


def _bars(axis: Any, times: dict[str, Times], clock: str) -> None:
    medians, errors = _medians(list(times.values()), clock)
    colors = [STYLES[BASE if name == BASE else FULL][0] for name in times]
    axis.barh([fill(name, 26) for name in times], medians, xerr=errors, color=colors, ecolor=INK, capsize=2)
    axis.invert_yaxis()
    axis.tick_params(axis="y", labelsize=8)
    axis.set(xlabel="seconds", title="1 image, by mode")
