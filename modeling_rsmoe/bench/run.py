"""The sections of a bench by name, and one run of some of them."""

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..errors_rsmoe import RSMoEError
from ..utils.provenance import folder_sha256, package_versions
from .equality import check
from .peers import Decoders
from .results import FORMAT, Results, Section
from .timing import Group, Tell
from .workbench import Workbench


EQUALITY = "equality"
IMAGES = 2  # on which equality is checked
QUICK_TOKENS, QUICK_ROUTER_TOKENS = 6, 8
TRAINING_TURNS = 3  # at most: the loops are long, and each loads the model anew


@dataclass(frozen=True)
class Run:
    """What a run is made of.

    Attributes:
        name: of the checkpoint, as the user knows it. threads: of this process and of those that it starts.
        gguf: the LLM for llama.cpp. data, config: for the section `training`.
    """

    bench: Workbench
    name: str
    repeats: int
    threads: int
    gguf: Path | None = None
    data: Path | None = None
    config: Path | None = None


def _cold(run: Run, decoders: Decoders, tell: Tell) -> tuple[list[Group], dict[str, Any]]:
    from .fresh import cold

    return cold(run.bench.folder, run.bench.tokens, run.threads, run.repeats, tell), {}


def _latency(run: Run, decoders: Decoders, tell: Tell) -> tuple[list[Group], dict[str, Any]]:
    from .phases import lengths, phases
    from .speed import latency

    first = latency(run.bench, run.repeats, lambda name, share: tell(name, share / 2))
    more = phases(run.bench, run.repeats, lambda name, share: tell(f"phases: {name}", 0.5 + share / 2))
    return first + more, {"lengths": lengths(run.bench)}


def _throughput(run: Run, decoders: Decoders, tell: Tell) -> tuple[list[Group], dict[str, Any]]:
    from .speed import throughput

    return throughput(run.bench, run.repeats, tell), {}


def _peers(run: Run, decoders: Decoders, tell: Tell) -> tuple[list[Group], dict[str, Any]]:
    from . import speed
    from .machine import Reading

    groups = speed.sequential(run.bench, run.repeats, lambda name, share: tell(name, 0.5 * share))
    groups += speed.decoding(run.bench, decoders, run.repeats, lambda name, share: tell(name, 0.5 + 0.3 * share))
    groups += speed.against_instructblip(run.bench, run.repeats, lambda name, share: tell(name, 0.8 + 0.05 * share))
    more, floor = speed.steps(run.bench, decoders, run.repeats, lambda name, share: tell(name, 0.85 + 0.05 * share))
    groups += more
    tell("reading memory", 0.9)
    facts: dict[str, Any] = {
        "floor": {**floor, "bytes_per_second": Reading(str(run.bench.model.device)).bandwidth(max(3, run.repeats))}
    }
    if run.gguf is not None:
        more, facts["gguf"] = speed.against_llama_cpp(
            run.bench, decoders, run.gguf, run.threads, run.repeats, lambda name, share: tell(name, 0.9 + 0.1 * share)
        )
        groups += more
    return groups, facts


def _memory(run: Run, decoders: Decoders, tell: Tell) -> tuple[list[Group], dict[str, Any]]:
    from .fresh import memory

    return [], {"peak_bytes": memory(run.bench.folder, run.bench.tokens, run.threads, tell)}


def _profile(run: Run, decoders: Decoders, tell: Tell) -> tuple[list[Group], dict[str, Any]]:
    from .phases import operations, products

    groups = products(run.bench, run.repeats, lambda name, share: tell(name, share / 2))
    tell("torch.profiler", 0.5)
    return groups, {"operations": operations(run.bench, decoders)}


def _growth(run: Run, decoders: Decoders, tell: Tell) -> tuple[list[Group], dict[str, Any]]:
    from .growth import growth

    return growth(run.bench, run.repeats, tell), {}


def _training(run: Run, decoders: Decoders, tell: Tell) -> tuple[list[Group], dict[str, Any]]:
    from .machine import machine_facts
    from .training import Course, training

    if run.data is None or run.config is None:
        raise RSMoEError("the section training needs --data, a data folder, or leave it out by --only")
    # Half precision only pays where the processor multiplies it; a GPU does.
    multiplies = {"avx512_bf16", "amx_bf16", "bf16"} & set(machine_facts("cpu")["features"])
    half = multiplies or run.bench.model.device.type != "cpu"
    course = Course(run.bench.folder, run.config, run.data, changes=() if half else ("--bf16", "false"))
    return training(course, min(run.repeats, TRAINING_TURNS), tell)


SECTIONS: dict[str, Callable[[Run, Decoders, Tell], tuple[list[Group], dict[str, Any]]]] = {
    "cold": _cold,
    "latency": _latency,
    "throughput": _throughput,
    "peers": _peers,
    "memory": _memory,
    "profile": _profile,
    "growth": _growth,
    "training": _training,
}
NAMES = (EQUALITY, *SECTIONS)


def measure(run: Run, sections: Collection[str], tell: Callable[[str, float | None], None]) -> Results:
    """Some of `NAMES`, in their order: first whether all contenders say the same.

    Args:
        tell: what is being measured, and the share of that section that is done.
    """
    from .machine import machine_facts

    bench = run.bench
    decoders = Decoders(bench)
    results: Results = {
        "format": FORMAT,
        "checkpoint": {"name": run.name, "sha256": folder_sha256(bench.folder)},
        "settings": {
            "tokens": bench.tokens,
            "router_tokens": bench.router_tokens,
            "repeats": run.repeats,
            "dtype": str(bench.model.dtype).removeprefix("torch."),
            "device": str(bench.model.device),
        },
        "machine": machine_facts(str(bench.model.device)),
        "versions": package_versions(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "sections": {},
    }
    if EQUALITY in sections:
        results["equality"] = check(bench, decoders, IMAGES, _told(EQUALITY, tell))
    for name in (name for name in SECTIONS if name in sections):
        began = time.perf_counter()
        groups, facts = SECTIONS[name](run, decoders, _told(name, tell))
        section: Section = {"seconds": time.perf_counter() - began, "groups": groups, "facts": facts}
        results["sections"][name] = section
    return results


def _told(section: str, tell: Callable[[str, float | None], None]) -> Tell:
    return lambda name, share: tell(f"{section}: {name}", share)
