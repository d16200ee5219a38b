"""Results as tables: for the terminal, and as Markdown for docs/performance.md, so that no number is typed by hand."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from .results import Results, all_groups
from .targets import TARGETS, bandwidth, steps_over_floor
from .timing import Group, Spread, busy_share, ratio, seconds, spread


@dataclass(frozen=True)
class Table:
    """Rows of texts; `texts` columns of them are no numbers. Notes stand below."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    texts: int = 1
    notes: list[str] = field(default_factory=list)


def tables(results: Results, clock: str = "wall") -> list[Table]:
    """All that the results hold, in the order of the sections."""
    found = [_equality(results)] if "equality" in results else []
    for section in results["sections"].values():
        found += [_times(group, clock) for group in section["groups"]]
        found += _facts(results, section["facts"], clock)
    return [*found, targets(results, clock)] if results["sections"] else found


def targets(results: Results, clock: str = "wall") -> Table:
    rows = []
    for target in TARGETS:
        found = target.measured(results, clock)
        limit = f"at {'least' if target.at_least else 'most'} {target.limit:.2g} x"
        met = "" if found is None else ("yes" if target.met(found) else "no")
        rows.append([target.text, limit, "not measured" if found is None else _ratio(found), met])
    return Table("Targets", ["", "target", "measured, median (lowest to highest)", "met"], rows, texts=1)


def _equality(results: Results) -> Table:
    rows = []
    for one in results["equality"]:
        logits = f"{one['logits']:.0e}" if "logits" in one else ""
        said = "; ".join(one["differences"]) or ("equal" if not one["ties"] else f"equal but for {one['ties']} ties")
        rows.append([one["name"], one["against"], said, str(one["rows"]), logits])
    columns = ["contender", "against", "tokens", "texts", "scores differ by"]
    notes = ["a tie: two tokens score the same up to rounding; scores are relative to the largest"]
    return Table("Equality of outputs", columns, rows, texts=3, notes=notes)


def _times(group: Group, clock: str) -> Table:
    times, base, captions = group["times"], group["times"][group["base"]], group.get("captions", 0)
    rows = []
    for name, own in times.items():
        spent, against = spread(seconds(own, clock)), ratio(own, base, clock)
        digits = 4 if spent["median"] < 0.1 else 2
        rows.append([name, f"{spent['median']:.{digits}f}", _range(spent, digits)])
        rows[-1] += [f"{captions / spent['median']:.2f}"] if captions else []
        rows[-1] += [f"{against['median']:.2f}", _range(against), f"{own['first']:.{digits}f}"]
    columns = ["", "s" if clock == "wall" else "s of the processor", "lowest to highest", "captions/s"]
    columns = columns[: 4 if captions else 3]
    return Table(f"{group['title']} (x: {group['base']})", [*columns, "x", "lowest to highest", "first run, s"], rows)


def _facts(results: Results, facts: dict[str, Any], clock: str) -> list[Table]:
    found = []
    if "lengths" in facts:
        rows = [[name, str(own).strip("[]")] for name, own in facts["lengths"].items()]
        found.append(Table("tokens of 1 image", ["", "tokens"], rows))
    if "peak_bytes" in facts:
        rows = [[name, f"{size / 1e6:,.0f}"] for name, size in facts["peak_bytes"].items()]
        found.append(Table("peak memory of a fresh process", ["", "MB"], rows))
    if "floor" in facts:
        found.append(_floor(results, facts["floor"], clock))
    if "gguf" in facts:
        rows = [
            [
                name,
                f"{own['bytes'] / 1e6:,.0f}",
                ", ".join(f"{kind} {size / 1e6:,.0f} MB" for kind, size in own["types"].items()),
            ]
            for name, own in facts["gguf"].items()
        ]
        found.append(Table("weights that llama.cpp reads", ["", "MB", "types"], rows))
    if "operations" in facts:
        kinds = list(dict.fromkeys(kind for own in facts["operations"].values() for kind in own))
        rows = [[kind, *(f"{100 * own.get(kind, 0):.0f} %" for own in facts["operations"].values())] for kind in kinds]
        notes = ["by torch.profiler, which slows Python down most: its share is an upper bound"]
        found.append(Table("where a decode's time goes", ["", *facts["operations"]], rows, notes=notes))
    if "shares" in facts:
        kinds = list(dict.fromkeys(kind for own in facts["shares"].values() for kind in own))
        rows = [[kind, *(f"{100 * own.get(kind, 0):.0f} %" for own in facts["shares"].values())] for kind in kinds]
        rows.append(["completions in a row", *(f"{value:.2f}" for value in facts["completions in a row"].values())])
        notes = ["of processor time"]
        found.append(Table("where training's time goes", ["", *facts["shares"]], rows, notes=notes))
    return found


def _floor(results: Results, floor: dict[str, Any], clock: str) -> Table:
    speed, rows = bandwidth(results), []
    for who, size in floor["bytes"].items():
        over = steps_over_floor(results, clock, who)
        if over is not None:
            least = size / speed["median"]
            rows.append(
                [who, f"{size / 1e6:,.0f}", f"{1e3 * least:.1f}", f"{1e3 * least * over['median']:.1f}", _ratio(over)]
            )
    columns = ["", "weights read, MB", "floor, ms", "a step, ms", "x the floor"]
    ways = floor["bytes_per_second"].items()
    read = ", ".join(f"{name} {_gigabytes(spread(values))}" for name, values in ways)
    return Table(
        "(g) one decoding step over reading its weights", columns, rows, notes=[f"memory is read at, GB/s: {read}"]
    )


def _gigabytes(found: Spread) -> str:
    return f"{found['median'] / 1e9:.1f} ({found['low'] / 1e9:.1f} to {found['high'] / 1e9:.1f})"


def _range(found: Spread, digits: int = 2) -> str:
    return f"{found['low']:.{digits}f} to {found['high']:.{digits}f}"


def _ratio(found: Spread) -> str:
    return f"{found['median']:.2f} ({_range(found)})"


# ---- as text


def footer(results: Results) -> list[str]:
    """What was measured, on what, with what."""
    machine, settings = results["machine"], results["settings"]
    features = ", ".join(machine["features"]) or "no features known"
    threads = f"{machine['threads']} of {machine['cores']} cores used"
    lines = [
        f"{machine.get('gpu') or machine['processor']} ({features}), {threads}",
        f"{settings['dtype']}, {settings['tokens']} new tokens a part, {settings['repeats']} turns after one that does not count",
        f"checkpoint {results['checkpoint']['name']}, sha256 {results['checkpoint']['sha256'][:12]}; {results['date']}",
        ", ".join(f"{name} {version}" for name, version in results["versions"].items()),
    ]
    busy = busy_share([group for group in all_groups(results) if group["key"] != "training"])
    if busy > 0.1 and machine["threads"] == 1:
        lines.append(
            f"The machine was busy: {100 * busy:.0f} % of the measured time went to other work. Measure again when it is quiet."
        )
    return lines


def markdown(results: Results, clock: str = "wall") -> str:
    """All tables as Markdown, the targets first."""
    every = tables(results, clock)
    parts = [_markdown_of(table) for table in [*every[-1:], *every[:-1]]]
    return "\n\n".join([*parts, "\n".join(f"- {line}" for line in footer(results))]) + "\n"


def _markdown_of(table: Table) -> str:
    rule = "|" + "---|" * table.texts + "---:|" * (len(table.columns) - table.texts)
    rows = [f"| {' | '.join(_escaped(row))} |" for row in [table.columns, *table.rows]]
    lines = [f"**{table.title}**", "", rows[0], rule, *rows[1:]]
    return "\n".join([*lines, *(["", *table.notes] if table.notes else [])])


def _escaped(cells: Iterable[str]) -> list[str]:
    return [cell.replace("|", "\\|") for cell in cells]
