"""What RS-MoE's speed should be, and what a bench measured of it, from its results alone."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from .names import (
    BASE,
    FULL,
    FULL_IMAGE,
    INSTRUCTBLIP,
    LLAMA_CPP,
    ONE_AFTER_ANOTHER,
    ONE_BATCH,
    ONE_REFERENCE,
    PEFT,
    PROCESS,
    RERANKED,
    RSMOE,
    SMOLVLM,
    TEMPLATE,
    TRL,
)
from .results import Results, group_of
from .timing import Spread, ratio, seconds, spread


class Target(NamedTuple):
    """What should be at most, or at least, `limit`: a ratio, or of another unit; `measured` is None where it was not
    measured."""

    text: str
    at: str  # "most" or "least"
    limit: float
    measured: Callable[[Results, str], Spread | None]  # of results and clock
    unit: str = "x"

    def met(self, measured: Spread) -> bool:
        """Whether the median is within the limit."""
        return measured["median"] >= self.limit if self.at == "least" else measured["median"] <= self.limit


def times_of(results: Results, clock: str, key: str, name: str, base: str) -> Spread | None:
    """How many times `base` the variant `name` of that group took."""
    group = group_of(results, key)
    if group is None or not {name, base} <= group["times"].keys():
        return None
    return ratio(group["times"][name], group["times"][base], clock)


def experts_share(results: Results, clock: str, mode: str) -> Spread | None:
    """The largest share of the added experts by which the time grows, from 3 experts to 5 or more."""
    group = group_of(results, "growth: experts")
    if group is None:
        return None
    shares: list[Spread] = []
    for name, experts in group["x"].items():
        if experts >= 5 and name.startswith(mode):
            grown = ratio(group["times"][name], group["times"][f"{mode}, 3 experts"], clock)
            low, median, high = ((grown[key] - 1) / (experts / 3 - 1) for key in ("low", "median", "high"))
            shares.append({"median": median, "low": low, "high": high})
    return max(shares, key=lambda share: share["median"], default=None)


def steps_over_floor(results: Results, clock: str, variant: str) -> Spread | None:
    """The time of a decoding step over the time in which its weights can be read."""
    steps, section = step_seconds(results, clock, "steps", variant), results["sections"].get("peers")
    if steps is None or section is None:
        return None
    fastest = section["facts"]["floor"]["bytes"][variant] / bandwidth(results)["median"]
    return spread([step / fastest for step in steps])


def step_seconds(results: Results, clock: str, key: str, variant: str) -> list[float] | None:
    """A decoding step of each round: what a text of all tokens takes more than one of a single token."""
    group, tokens = group_of(results, key), results["settings"]["tokens"]
    if group is None:
        return None
    long, short = (group["times"].get(f"{variant}, {length}") for length in (f"{tokens} tokens", "1 token"))
    if long is None or short is None:
        return None
    pairs = zip(seconds(long, clock), seconds(short, clock), strict=True)
    return [(one - other) / (tokens - 1) for one, other in pairs]


def steps_over_llama_cpp(results: Results, clock: str, variant: str, weight_type: str) -> Spread | None:
    """How many steps of llama.cpp, of one sequence, a step takes."""
    ours, theirs = (
        step_seconds(results, clock, "llama.cpp", name) for name in (variant, LLAMA_CPP.format(weight_type))
    )
    if ours is None or theirs is None:
        return None
    return spread([one / other for one, other in zip(ours, theirs, strict=True)])


def cold_start(results: Results, clock: str) -> Spread | None:
    """Seconds of a process up to its first caption by the full model."""
    group = group_of(results, f"cold: {FULL_IMAGE}")
    return group and spread(seconds(group["times"][PROCESS], clock))


def peak_memory(results: Results, clock: str) -> Spread | None:
    """GB that a process held at most until its first caption by the full model."""
    section = results["sections"].get("memory")
    return section and spread([section["facts"]["peak_bytes"][FULL_IMAGE] / 1e9])


def bandwidth(results: Results) -> Spread:
    """Bytes a second, by the faster way of reading."""
    rates = results["sections"]["peers"]["facts"]["floor"]["bytes_per_second"].values()
    return max(map(spread, rates), key=lambda rate: rate["median"])


def _ratio(key: str, name: str, base: str) -> Callable[[Results, str], Spread | None]:
    return partial(times_of, key=key, name=name, base=base)


_AGAINST_BASE = "full (router, 3 experts, concat) against the base LM alone, 1 image"
_SEQUENTIAL = "against router and experts one after another (b), 1 image"
_INSTRUCTBLIP = "base LM's caption against InstructBLIP's of the same shapes (e)"
_SMOLVLM = "full (router, 3 experts, reranked) against SmolVLM-256M's caption of one tile (h)"
_EXPERTS = "5 to 8 experts against 3: growth over the added experts' share"
_FLOOR = "decoding step over the bandwidth floor (g), base LM alone, 1 sequence"
_LLAMA_CPP = "decoding step of the experts' sequences of 1 image against llama.cpp's of one, Q8_0 (f)"
TARGETS = (
    Target(_AGAINST_BASE, "most", 2.4, _ratio("latency", FULL, BASE)),
    Target("the same with `router=template`, 1 image", "most", 1.5, _ratio("latency", TEMPLATE, BASE)),
    Target("full against the base LM alone, 8 images", "most", 3.2, _ratio("images: 8", FULL, BASE)),
    Target("the same with `router=template`, 8 images", "most", 1.9, _ratio("images: 8", TEMPLATE, BASE)),
    Target(_SEQUENTIAL, "least", 2.5, _ratio("sequential: 1", ONE_AFTER_ANOTHER, ONE_BATCH)),
    Target("the same, 8 images", "least", 5.0, _ratio("sequential: 8", ONE_AFTER_ANOTHER, ONE_BATCH)),
    Target("against PEFT's `adapter_names` (c), 3 sequences", "least", 1.4, _ratio("sequences: 1", PEFT, RSMOE)),
    Target("the same, 24 sequences", "least", 1.2, _ratio("sequences: 8", PEFT, RSMOE)),
    Target(_INSTRUCTBLIP, "least", 1.2, _ratio("instructblip", INSTRUCTBLIP, BASE)),
    Target(_SMOLVLM, "least", 1.5, _ratio("smolvlm", SMOLVLM, RERANKED)),
    Target(_EXPERTS, "most", 1 / 3, partial(experts_share, mode=FULL)),
    Target("the same with `router=template`, 5 to 8 experts", "most", 1 / 3, partial(experts_share, mode=TEMPLATE)),
    Target(_FLOOR, "most", 2.0, partial(steps_over_floor, variant=BASE)),
    Target("the same, the experts' sequences of 1 image", "most", 2.0, partial(steps_over_floor, variant=RSMOE)),
    Target(_LLAMA_CPP, "most", 2.5, partial(steps_over_llama_cpp, variant=RSMOE, weight_type="Q8_0")),
    Target("cold start up to the first caption, full (router, 3 experts, concat)", "most", 9.0, cold_start, "s"),
    Target("peak memory of the same", "most", 1.2, peak_memory, "GB"),
    Target(
        "training examples per second against TRL's plain loop", "least", 2.0, _ratio("training", TRL, ONE_REFERENCE)
    ),
)
