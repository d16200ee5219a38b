"""Markdown tables of reports: one for each set of images, a row for each system and baseline.

Made from the reports alone, so that a table can be made again at any time. Published scores of others have no place
here: they were made on other images, or by other code.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors_rsmoe import RSMoEError
from .report import Report, Result, ScoreEntry, checkpoints_of


# Scores that stand in the report but not in tables: between their neighbors, or printed by hardly any paper.
_LEFT_OUT = ("BLEU-2", "BLEU-3", "CIDEr")
_NO_IMAGE = ", no image"
_HEADLINE = {"captioning": "CIDEr-D", "vqa": "accuracy"}  # the one score of a task in a short table
_SYSTEMS = {"full": "full model", "base": "base LM alone"}
_BASELINES = {
    ("constant", "captioning"): "the most frequent training caption",
    ("constant", "vqa"): "the most frequent training answer to the type",
    ("question-only", "vqa"): "guessed from the question alone",
}


@dataclass(frozen=True)
class Row:
    """A line of a table. `seconds` is per image or question, None where it is not known."""

    label: str
    scores: Mapping[str, ScoreEntry]
    seconds: float | None = None


def markdown_table(reports: Sequence[Report]) -> str:
    """The tables of some reports of one task, with what they were made from below.

    Reports stand in one table only where they scored the same images against the same references (by their data hash).
    A score is followed by its bootstrap 95 % interval.

    Args:
        reports: in the order in which their systems shall stand, for example the full model first.

    Raises:
        RSMoEError: when there is no report, or reports of both tasks.
    """
    tasks = sorted({report["task"] for report in reports})
    if len(tasks) != 1:
        raise RSMoEError(f"a table needs reports of one task, got {', '.join(tasks) or 'no report'}")
    groups: dict[tuple[str, str, str], list[tuple[Report, Result]]] = defaultdict(list)
    for report in reports:
        for result in report["results"]:
            groups[result["dataset"], result["split"], result["sha256"]].append((report, result))
    tables = [_table(group) for group in groups.values()]
    tables += [_difference_table(report) for report in reports if "against" in report]
    return "\n\n".join([*tables, _footer(reports)]) + "\n"


def summary_table(reports: Sequence[Report]) -> str:
    """One short table of reports of any tasks: a row for each set of images, with the headline score of the full
    model, of its base LM alone, and of the best that does not look at the image.
    """
    groups: dict[tuple[str, str, str, str], list[tuple[Report, Result]]] = defaultdict(list)
    for report in reports:
        for result in report["results"]:
            groups[report["task"], result["dataset"], result["split"], result["sha256"]].append((report, result))
    lines = [["", "score", *_SYSTEMS.values(), "without the image"]]
    for (task, *_), group in groups.items():
        name = _HEADLINE[task]
        measured = {report["system"]: result["scores"].get(name) for report, result in group}
        blind = [scores for report, result in group for scores in result["baselines"].values()]
        blind += [result["scores"] for report, result in group if _is_baseline(report)]
        best = max((scores[name] for scores in blind if name in scores), key=lambda one: one["value"], default=None)
        cells = [*(measured.get(system) for system in _SYSTEMS), best]
        lines.append([headline(group[0][1], task), name, *map(_cell, cells)])
    return "\n".join(_rows(lines, texts=2)) + "\n"


def rows_of(group: Sequence[tuple[Report, Result]]) -> list[Row]:
    """The rows for results on the same data: the systems, the experts' parts, the baselines (each once)."""
    labels = _labels([report for report, _ in group])
    systems: list[Row] = []
    baselines: list[Row] = []
    for label, (report, result) in zip(labels, group):
        of_kind = baselines if _is_baseline(report) else systems
        of_kind.append(Row(label, result["scores"], _seconds(result)))
    parts = [
        Row(f"{label}: part of the {name} expert", scores)
        for label, (_, result) in zip(labels, group)
        for name, scores in result.get("parts", {}).items()
    ]
    baselines += [
        Row(_BASELINES.get((name, report["task"]), name), scores)
        for report, result in group
        for name, scores in result["baselines"].items()
    ]
    kept: dict[str, Row] = {}
    for row in systems + parts + baselines:
        kept.setdefault(row.label, row)
    return list(kept.values())


def shown_scores(tables: Iterable[Mapping[str, ScoreEntry]]) -> list[str]:
    """The names of the scores to show, in order: without those that say little beside their neighbors."""
    return list(dict.fromkeys(name for scores in tables for name in scores if name not in _LEFT_OUT))


def headline(result: Result, task: str) -> str:
    """What was scored: "RSICD, val (1,094 images)"."""
    size = _counted(result["images"], "image")
    if task == "vqa":
        size = f"{_counted(result['items'], 'question')} about {size}"
    limit = f", limited to {result['limit']:,}" if result["limit"] is not None else ""
    return f"{result['dataset']}, {result['split']} ({size}{limit})"


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' if number != 1 else ''}"


def short_hash(sha256: str) -> str:
    """The first 12 digits, enough to compare by eye."""
    return sha256[:12]


# ---- tables


def _table(group: Sequence[tuple[Report, Result]]) -> str:
    rows, task = rows_of(group), group[0][0]["task"]
    names = shown_scores(row.scores for row in rows)
    timed = any(row.seconds is not None for row in rows)
    lines = [["system", *names, *([f"s / {'question' if task == 'vqa' else 'image'}"] if timed else [])]]
    for row in rows:
        seconds = "" if row.seconds is None else f"{row.seconds:.2f}"
        lines.append([row.label, *(_cell(row.scores.get(name)) for name in names), *([seconds] if timed else [])])
    return "\n".join([f"**{_escaped(headline(group[0][1], task))}**", "", *_rows(lines)])


def _difference_table(report: Report) -> str:
    """The report's system minus others on the same items."""
    found = [(against["name"], one) for against in report["against"] for one in against["differences"]]
    names = list(dict.fromkeys(name for _, one in found for name in one["scores"]))
    lines = [["minus", "on", "items", *names]]
    for other, one in found:
        cells = (one["scores"].get(name) for name in names)
        signed = ["" if c is None else f"{c['value']:+.1f} [{c['low']:+.1f}, {c['high']:+.1f}]" for c in cells]
        lines.append([other, one["dataset"], f"{one['items']:,}", *signed])
    title = f"**{_escaped(_labels([report])[0])}: differences, with paired intervals**"
    return "\n".join([title, "", *_rows(lines, texts=2)])


def _rows(lines: Sequence[Sequence[str]], texts: int = 1) -> list[str]:
    """The lines of a table; the first so many columns are texts."""
    rows = [f"| {' | '.join(map(_escaped, line))} |" for line in lines]
    rows.insert(1, "|" + "|".join(["---"] * texts + ["---:"] * (len(lines[0]) - texts)) + "|")
    return rows


def _cell(score: ScoreEntry | None) -> str:
    return "" if score is None else f"{score['value']:.1f} [{score['low']:.1f}, {score['high']:.1f}]"


def _seconds(result: Result) -> float | None:
    return result.get("seconds_per_image", result.get("seconds_per_item"))


def _is_baseline(report: Report) -> bool:
    return report["system"].endswith(_NO_IMAGE) or (report["system"], report["task"]) in _BASELINES


def _labels(reports: Sequence[Report]) -> list[str]:
    """A label for each report. Reports that would be called the same are told apart by the settings that differ."""
    several = len(checkpoints_of(reports)) > 1
    labels = [_label(report, several) for report in reports]
    named = []
    for label, report in zip(labels, reports):
        same = [other["settings"] for one, other in zip(labels, reports) if one == label]
        differing = [
            f"{name} {value}"
            for name, value in report["settings"].items()
            if len({json.dumps(settings.get(name), sort_keys=True) for settings in same}) > 1
        ]
        named.append(label + (f" ({', '.join(differing)})" if differing else ""))
    return named


def _label(report: Report, with_checkpoint: bool) -> str:
    system = report["system"]
    reader = system.removesuffix(_NO_IMAGE)
    if reader.startswith("experts:"):
        label = f"{reader.removeprefix('experts:')} expert alone"
    elif reader.startswith("full:"):
        label = f"full model, experts {reader.removeprefix('full:').replace(',', ', ')}"
    else:
        label = _SYSTEMS.get(reader) or _BASELINES.get((reader, report["task"]), reader)
    label += " without the image" if system != reader else ""
    checkpoint = report["checkpoint"]
    return f"{checkpoint['name']}, {label}" if with_checkpoint and checkpoint else label


# ---- what stands below


def _footer(reports: Sequence[Report]) -> str:
    results = [result for report in reports for result in report["results"]]
    lines = ["In brackets: bootstrap 95 % intervals. Scores are times 100, except lengths"]
    missing = _unique((name, reason) for result in results for name, reason in result["missing"].items())
    lines += [f"{name} is missing: {reason}" for name, reason in missing]
    notes = _unique((name, note) for result in results for name, note in result["notes"].items())
    lines += [f"{name}: {note}" for name, note in notes if name not in _LEFT_OUT]
    for one in checkpoints_of(reports):
        lines.append(f"Checkpoint {one['name']}: sha256 {short_hash(one['sha256'])}")
    data = _unique((result["dataset"], result["split"], short_hash(result["sha256"])) for result in results)
    lines.append("Data: " + ", ".join(" ".join(one) for one in data) + " (sha256 of records and images)")
    machines = _unique((report["machine"], report["versions"]) for report in reports)
    lines += [f"Made with {', '.join(map(' '.join, versions.items()))} on {name}" for name, versions in machines]
    memory = max(report["peak_memory_bytes"] for report in reports)
    lines.append(f"Peak memory: {memory / 1e9:.1f} GB")
    return "\n".join(f"- {_escaped(line).rstrip('.')}." for line in lines)


def _unique(values: Iterable[Any]) -> list[Any]:
    kept = []
    for value in values:
        if value not in kept:
            kept.append(value)
    return kept


def _escaped(text: str) -> str:
    """One line that cannot end a cell or start HTML."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
