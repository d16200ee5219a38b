"""Made results of a bench: what tables, targets and plots read."""

from typing import Any

from modeling_rsmoe.bench.names import (
    BASE,
    FULL,
    INSTRUCTBLIP,
    ONE_AFTER_ANOTHER,
    ONE_BATCH,
    ONE_REFERENCE,
    PEFT,
    RSMOE,
    TEMPLATE,
    TRL,
)
from modeling_rsmoe.bench.results import FORMAT, Results
from modeling_rsmoe.bench.timing import Group, Times


def times(*wall: float) -> Times:
    """Of the processor, half of what the clock says."""
    return {"first": 2 * wall[0], "wall": list(wall), "cpu": [value / 2 for value in wall]}


def group(key: str, base: str, **more: Any) -> Group:
    return {"key": key, "title": f"title of {key}", "base": base, **more}


def made_results() -> Results:
    experts = {f"{FULL}, {n} experts": times(1 + n, 1.1 * (1 + n)) for n in range(1, 9)}
    growth = group("growth: experts", BASE, times={BASE: times(1, 1), **experts})
    growth["x"] = {BASE: 0, **{name: n for n, name in enumerate(experts, start=1)}}
    facts_of_latency = {"peak_bytes": {"Python and libraries": 3 * 10**8}, "lengths": {"router's prompts": [7, 8, 9]}}
    modes = {BASE: times(1, 2, 3), FULL: times(2, 4, 9), TEMPLATE: times(1.6, 3.2, 4.8)}
    steps = {f"{who}, {n}": times(n_s) for who in (BASE, RSMOE) for n, n_s in (("1 token", 1.0), ("24 tokens", 3.3))}
    groups = {
        "latency": [group("latency", BASE, times=modes, captions=1)],
        "throughput": [group(f"images: {n}", BASE, times=modes, captions=n) for n in (1, 8)],
        "peers": [
            group("sequential: 1", ONE_BATCH, times={ONE_BATCH: times(1, 1), ONE_AFTER_ANOTHER: times(3, 4)}),
            group("sequences: 1", RSMOE, times={RSMOE: times(2, 2), PEFT: times(2, 3)}),
            group("instructblip", BASE, times={BASE: times(1), INSTRUCTBLIP: times(1.1)}),
            group("steps", f"{BASE}, 1 token", times=steps),
        ],
        "growth": [growth],
        "training": [group("training", TRL, times={TRL: times(2, 2), ONE_REFERENCE: times(1, 1.25)})],
    }
    facts: dict[str, dict[str, Any]] = {name: {} for name in groups}
    read = {"sum": [1e9, 2e9, 3e9], "product": [1e9, 1e9, 1e9]}
    facts["peers"]["floor"] = {"sequences": 3, "bytes": {BASE: 10**8, RSMOE: 2 * 10**8}, "bytes_per_second": read}
    facts["training"] = {
        "shares": {TRL: {"backward": 0.5}},
        "completions per example": {TRL: 1.0},
        "examples in a step": 8,
    }
    facts["latency"] = facts_of_latency
    return {
        "format": FORMAT,
        "checkpoint": {"name": "tiny", "sha256": "0" * 64},
        "settings": {"tokens": 24, "router_tokens": 24, "repeats": 3, "dtype": "float32", "device": "cpu"},
        "machine": {"processor": "A processor", "features": ["avx2"], "cores": 2, "threads": 1},
        "versions": {"torch": "2.13.0"},
        "date": "2026-01-01T00:00:00+00:00",
        "sections": {name: {"seconds": 1.0, "groups": made, "facts": facts[name]} for name, made in groups.items()},
        "equality": [
            {"name": "one", "against": "two", "texts": 6, "ties": 0, "differences": []},
            {"name": "three", "against": "two", "texts": 6, "ties": 1, "differences": [], "logits": 2e-6},
        ],
    }
