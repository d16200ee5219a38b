"""Results as tables: for the terminal, and as Markdown for docs/benchmarks/bench.md, never typed by hand."""

from dataclasses import dataclass, field
from typing import Any

from ..utils.tables import markdown_table
from .results import Results, all_groups
from .targets import TARGETS, bandwidth, steps_over_floor
from .timing import Group, Spread, busy_share, ratio, seconds, spread


TITLES = {  # of the sections
    "equality": "Equality: whether all variants give the same texts",
    "cold": "Cold start: a fresh process",
    "latency": "Latency: one image, by mode and phase",
    "throughput": "Throughput: several images in one batch",
    "peers": "Peers: other ways to the same texts",
    "memory": "Memory",
    "profile": "Profile: where a decode's time goes",
    "growth": "Growth: with experts, tokens and threads",
    "training": "Training",
    "device": "Device: first tokens, captions and kinds of cache",
}
PEAKS = {"peak_bytes": "peak memory of a fresh process", "device_bytes": "peak of the device's memory"}  # facts


@dataclass(frozen=True)
class Table:
    """Rows of texts under their columns' titles; notes stand below."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    notes: list[str] = field(default_factory=list)


def tables(results: Results, clock: str = "wall") -> list[Table]:
    """All that the results hold, in the order of the sections; the targets last."""
    made = [table for of_section in _by_section(results, clock).values() for table in of_section]
    return [*made, targets(results, clock)] if results["sections"] else made


def _by_section(results: Results, clock: str) -> dict[str, list[Table]]:
    made = {"equality": [_equality(results)]} if "equality" in results else {}
    for name, section in results["sections"].items():
        made[name] = [_times(group, clock) for group in section["groups"]]
        made[name] += _facts(results, section["facts"], clock)
    return made


def targets(results: Results, clock: str = "wall") -> Table:
    """What should be, and what was measured of it."""
    rows = []
    for target in TARGETS:
        measured = target.measured(results, clock)
        limit = f"at {target.at} {target.limit:.2g} {target.unit}"
        met = "" if measured is None else ("yes" if target.met(measured) else "no")
        rows.append([target.text, limit, "not measured" if measured is None else _ratio(measured), met])
    return Table("Targets", ["", "target", "measured, median (lowest to highest)", "met"], rows)


def _equality(results: Results) -> Table:
    rows = []
    for one in results["equality"]:
        logits = f"{one['logits']:.0e}" if "logits" in one else ""
        ties = f"equal but for {one['ties']} ties" if one["ties"] else "equal"
        rows.append([one["name"], one["against"], "; ".join(one["differences"]) or ties, str(one["texts"]), logits])
    notes = ["a tie: two tokens score the same up to rounding; scores are relative to the largest"]
    return Table("Equality of outputs", ["variant", "against", "tokens", "texts", "scores differ by"], rows, notes)


def _times(group: Group, clock: str) -> Table:
    base, captions = group["times"][group["base"]], group.get("captions", 0)
    rows = []
    for name, times in group["times"].items():
        spent, against = spread(seconds(times, clock)), ratio(times, base, clock)
        digits = 4 if spent["median"] < 0.1 else 2
        rate = [f"{captions / spent['median']:.2f}"] if captions else []
        row = [name, f"{spent['median']:.{digits}f}", _range(spent, digits), *rate]
        rows.append([*row, f"{against['median']:.2f}", _range(against), f"{times['first']:.{digits}f}"])
    columns = ["", "s" if clock == "wall" else "s of the processor", "lowest to highest"]
    columns += [*(["captions/s"] if captions else []), "x", "lowest to highest", "first run, s"]
    return Table(f"{group['title']} (x: {group['base']})", columns, rows)


def _facts(results: Results, facts: dict[str, Any], clock: str) -> list[Table]:
    made = []
    if "lengths" in facts:
        rows = [[name, str(lengths).strip("[]")] for name, lengths in facts["lengths"].items()]
        made.append(Table("tokens of 1 image", ["", "tokens"], rows))
    for key, title in PEAKS.items():
        if key in facts:
            rows = [[name, _megabytes(size)] for name, size in facts[key].items()]
            made.append(Table(title, ["", "MB"], rows))
    if "floor" in facts:
        made.append(_floor(results, facts["floor"], clock))
    if "gguf" in facts:
        rows = []
        for name, file in facts["gguf"].items():
            types = ", ".join(f"{weight_type} {_megabytes(size)} MB" for weight_type, size in file["types"].items())
            rows.append([name, _megabytes(file["bytes"]), types])
        made.append(Table("weights that llama.cpp reads", ["", "MB", "types"], rows))
    if "operations" in facts:
        rows = _shares(facts["operations"])
        notes = ["by torch.profiler, which slows Python down most: its share is an upper bound"]
        made.append(Table("where a decode's time goes", ["", *facts["operations"]], rows, notes))
    if "shares" in facts:
        completions = [f"{value:.2f}" for value in facts["completions per example"].values()]
        rows = [*_shares(facts["shares"]), ["completions per example", *completions]]
        made.append(Table("where training's time goes", ["", *facts["shares"]], rows, ["of processor time"]))
    return made


def _shares(by_variant: dict[str, dict[str, float]]) -> list[list[str]]:
    """A row for each thing that takes time, a column for each variant."""
    names = dict.fromkeys(name for shares in by_variant.values() for name in shares)
    return [[name, *(f"{100 * shares.get(name, 0):.0f} %" for shares in by_variant.values())] for name in names]


def _floor(results: Results, floor: dict[str, Any], clock: str) -> Table:
    rows = []
    for variant, size in floor["bytes"].items():
        over = steps_over_floor(results, clock, variant)
        if over is not None:
            fastest = 1e3 * size / bandwidth(results)["median"]
            step = fastest * over["median"]
            rows.append([variant, _megabytes(size), f"{fastest:.1f}", f"{step:.1f}", _ratio(over)])
    rates = {name: spread([rate / 1e9 for rate in rates]) for name, rates in floor["bytes_per_second"].items()}
    read = ", ".join(f"{name} {rate['median']:.1f} ({_range(rate, 1)})" for name, rate in rates.items())
    columns = ["", "weights read, MB", "floor, ms", "a step, ms", "x the floor"]
    title = "(g) one decoding step over reading its weights"
    return Table(title, columns, rows, [f"memory is read at, GB/s: {read}"])


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.0f}"


def _range(found: Spread, digits: int = 2) -> str:
    return f"{found['low']:.{digits}f} to {found['high']:.{digits}f}"


def _ratio(found: Spread) -> str:
    return f"{found['median']:.2f} ({_range(found)})"


# ---- as text


def footer(results: Results) -> list[str]:
    """What was measured, on what, with what."""
    machine, settings, checkpoint = results["machine"], results["settings"], results["checkpoint"]
    processor = machine.get("gpu") or machine["processor"]
    features = ", ".join(machine["features"]) or "no features known"
    lines = [
        f"{processor} ({features}), {machine['threads']} of {machine['cores']} cores used",
        f"{settings['dtype']}, {settings['tokens']} new tokens per text, "
        f"{settings['repeats']} rounds after one that does not count",
        f"checkpoint {checkpoint['name']}, sha256 {checkpoint['sha256'][:12]}; {results['date']}",
        ", ".join(f"{name} {version}" for name, version in results["versions"].items()),
    ]
    busy = busy_share([group for group in all_groups(results) if group["key"] != "training"])
    if busy > 0.1 and machine["threads"] == 1:
        went = f"The machine was busy: {100 * busy:.0f} % of the measured time went to other work."
        lines.append(f"{went} Measure again when it is quiet.")
    return lines


def markdown(results: Results, clock: str = "wall") -> str:
    """All tables as Markdown: the targets, and below them those of each section, folded (HTML that GitHub and a site
    of Markdown pages, by md_in_html, show as a line to click on)."""
    parts = [_table_text(targets(results, clock))] if results["sections"] else []
    for name, made in _by_section(results, clock).items():
        texts = "\n\n".join(map(_table_text, made))
        parts.append(f"<details markdown>\n<summary>{TITLES[name]}</summary>\n\n{texts}\n\n</details>")
    return "\n\n".join([*parts, "\n".join(f"- {line}" for line in footer(results))]) + "\n"


def _table_text(table: Table) -> str:
    notes = ["", *table.notes] if table.notes else []
    return "\n".join([f"**{table.title}**", "", markdown_table(table.columns, table.rows), *notes])
