"""What RS-MoE's speed should be, and what a bench measured of it, from its results alone."""

from collections.abc import Callable
from dataclasses import dataclass

from .names import BLOCK, FULL, INSTRUCTBLIP, ONE_AFTER_ANOTHER, ONE_BATCH, OURS, OURS_SINGLE, PEFT, TEMPLATE, TRL
from .results import Results, group_of
from .timing import Spread, ratio, seconds, spread


@dataclass(frozen=True)
class Target:
    """A ratio that should be at most, or at least, `limit`."""

    text: str
    limit: float
    at_least: bool
    measured: Callable[[Results, str], Spread | None]  # of results and clock; None where it was not measured

    def met(self, found: Spread) -> bool:
        return found["median"] >= self.limit if self.at_least else found["median"] <= self.limit


def _of(key: str, name: str, base: str) -> Callable[[Results, str], Spread | None]:
    """How many times `base` the contender `name` of that group took."""

    def measured(results: Results, clock: str) -> Spread | None:
        group = group_of(results, key)
        if group is None or not {name, base} <= group["times"].keys():
            return None
        return ratio(group["times"][name], group["times"][base], clock)

    return measured


def _experts_share(results: Results, clock: str, mode: str) -> Spread | None:
    """The largest share of the added experts by which the time grows, from 3 experts to 5 or more."""
    group = group_of(results, "growth: experts")
    if group is None:
        return None
    times = group["times"]
    shares: list[Spread] = []
    for name, count in group.get("x", {}).items():
        if count >= 5 and name.startswith(mode):
            grown = ratio(times[name], times[f"{mode}, 3 experts"], clock)
            added = count / 3 - 1
            low, median, high = ((grown[key] - 1) / added for key in ("low", "median", "high"))
            shares.append({"median": median, "low": low, "high": high})
    return max(shares, key=lambda one: one["median"], default=None)


def steps_over_floor(results: Results, clock: str, who: str) -> Spread | None:
    """The time of a decoding step over the time in which its weights can be read."""
    group, section = group_of(results, "steps"), results["sections"].get("peers")
    if group is None or section is None:
        return None
    floor, tokens = section["facts"]["floor"], results["settings"]["tokens"]
    long, short = (group["times"][f"{who}, {count}"] for count in (f"{tokens} tokens", "1 token"))
    pairs = zip(seconds(long, clock), seconds(short, clock), strict=True)
    best = floor["bytes"][who] / bandwidth(results)["median"]
    return spread([(one - other) / (tokens - 1) / best for one, other in pairs])


def bandwidth(results: Results) -> Spread:
    """Bytes a second, by the faster kind of reading."""
    ways = results["sections"]["peers"]["facts"]["floor"]["bytes_per_second"].values()
    return max((spread(way) for way in ways), key=lambda one: one["median"])


TARGETS = (
    Target(
        "full (router, 3 experts, concat) against the base LM alone, 1 image",
        2.2,
        False,
        _of("latency", FULL, BLOCK),
    ),
    Target("the same with `router=template`, 1 image", 1.5, False, _of("latency", TEMPLATE, BLOCK)),
    Target("full against the base LM alone, 8 images", 3.0, False, _of("images: 8", FULL, BLOCK)),
    Target("the same with `router=template`, 8 images", 1.9, False, _of("images: 8", TEMPLATE, BLOCK)),
    Target(
        "against router and experts one after another (b), 1 image",
        2.5,
        True,
        _of("sequential: 1", ONE_AFTER_ANOTHER, ONE_BATCH),
    ),
    Target("the same, 8 images", 5.0, True, _of("sequential: 8", ONE_AFTER_ANOTHER, ONE_BATCH)),
    Target("against PEFT's `adapter_names` (c), 3 rows", 1.4, True, _of("rows: 1", PEFT, OURS)),
    Target("the same, 24 rows", 1.2, True, _of("rows: 8", PEFT, OURS)),
    Target(
        "base LM's caption against InstructBLIP's of the same shapes (e)",
        1.2,
        True,
        _of("instructblip", INSTRUCTBLIP, BLOCK),
    ),
    Target(
        "5 to 8 experts against 3: growth over the added experts' share",
        1 / 3,
        False,
        lambda r, c: _experts_share(r, c, FULL),
    ),
    Target(
        "the same with `router=template`, 5 to 8 experts", 1 / 3, False, lambda r, c: _experts_share(r, c, TEMPLATE)
    ),
    Target(
        "decoding step over the bandwidth floor (g), base LM alone, 1 row",
        2.0,
        False,
        lambda r, c: steps_over_floor(r, c, BLOCK),
    ),
    Target("the same, the experts' rows of 1 image", 2.0, False, lambda r, c: steps_over_floor(r, c, OURS)),
    Target("training rows per second against TRL's plain loop", 1.5, True, _of("training", TRL, OURS_SINGLE)),
)
