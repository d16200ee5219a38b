"""The sections of a bench by name, and one run of some of them."""

import time
from collections.abc import Callable, Collection
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from ..utils.progress import Progress, no_progress
from ..utils.provenance import folder_sha256, package_versions
from . import equality, fresh, growth, phases, speed
from .device import device
from .machine import machine_facts
from .results import FORMAT, Results
from .timing import Group
from .workbench import Workbench


EQUALITY = "equality"
QUICK_TOKENS, QUICK_ROUTER_TOKENS = 6, 8


def _training(bench: Workbench) -> tuple[list[Group], dict[str, Any]]:
    from .training import training  # trl and datasets are needed for this section only

    return training(bench)


# By name: from a bench to groups of times, and facts that are no times.
SECTIONS: dict[str, Callable[[Workbench], tuple[list[Group], dict[str, Any]]]] = {
    "cold": fresh.cold,
    "latency": speed.latency,
    "throughput": speed.throughput,
    "peers": speed.peers,
    "memory": fresh.memory,
    "profile": phases.profile,
    "growth": growth.growth,
    "training": _training,
    "device": device,
}
NAMES = (EQUALITY, *SECTIONS)


def measure(bench: Workbench, name: str, sections: Collection[str], progress: Progress = no_progress) -> Results:
    """Measure some sections, in the order of `NAMES`: first whether all variants say the same.

    Args:
        bench: what is measured.
        name: of the checkpoint, as the user knows it.
        sections: some of `NAMES`.
        progress: gets section and variant, and how much of a group is done.
    """
    results: Results = {
        "format": FORMAT,
        "checkpoint": {"name": name, "sha256": folder_sha256(bench.folder)},
        "settings": {
            "tokens": bench.tokens,
            "router_tokens": bench.router_tokens,
            "repeats": bench.repeats,
            "dtype": str(bench.model.dtype).removeprefix("torch."),
            "device": str(bench.model.device),
        },
        "machine": machine_facts(str(bench.model.device)),
        "versions": package_versions(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "sections": {},
    }
    bench = replace(bench)
    for section in (name for name in NAMES if name in sections):
        bench.progress = _named(section, progress)
        began = time.perf_counter()
        if section == EQUALITY:
            results["equality"] = equality.check(bench)
        else:
            groups, facts = SECTIONS[section](bench)
            spent = time.perf_counter() - began
            results["sections"][section] = {"seconds": spent, "groups": groups, "facts": facts}
    return results


def _named(section: str, progress: Progress) -> Progress:
    """Progress whose messages begin with the section's name."""

    def report(message: str, done: float = 0, total: float | None = None, unit: str = "") -> None:
        progress(f"{section}: {message}", done, total, unit)

    return report
