"""The report of an evaluation: one JSON file with scores, intervals, baselines and what they were made from.

Data flows in as `Scored` and goes out as plain JSON values of the types below; tables, pages and model cards are made
from the file alone. Knows nothing about metrics or models.
"""

import json
from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from ..data.records import CaptionRecord, QuestionRecord, records_sha256
from ..errors_rsmoe import RSMoEError
from ..utils.files import write_whole
from ..utils.provenance import package_versions
from .scores import Scored, Scores


FORMAT = 1
TASKS = ("captioning", "vqa")
ALL_DATASETS = "all"  # the name of the result that pools several datasets


class ScoreEntry(TypedDict):
    """A score (times 100) and the bounds of its 95 % interval."""

    value: float
    low: float
    high: float


class Checkpoint(TypedDict):
    """The model that was evaluated, and the sha256 of its weights (`weights_sha256`)."""

    name: str
    sha256: str


class Result(TypedDict):
    """The scores of one split of one dataset; `dataset` is "all" where several datasets are pooled."""

    dataset: str
    split: str
    sha256: str  # of the records and their images (`records_sha256`)
    images: int
    items: int  # captioned images, or questions
    limit: int | None  # how many items were asked for, if not all
    scores: dict[str, ScoreEntry]
    missing: dict[str, str]
    notes: dict[str, str]
    baselines: dict[str, dict[str, ScoreEntry]]
    parts: NotRequired[dict[str, dict[str, ScoreEntry]]]  # of the experts, for captions by the full model
    seconds_per_image: NotRequired[float]  # captioning
    seconds_per_item: NotRequired[float]  # vqa


class Difference(TypedDict):
    """The system's scores minus another's on the same items, with paired intervals; `dataset` as of a result."""

    dataset: str
    items: int
    scores: dict[str, ScoreEntry]


class Against(TypedDict):
    """Another system, and the differences from it."""

    name: str  # of the file with its predictions
    differences: list[Difference]


class Report(TypedDict):
    """One run of one system over one split of some datasets."""

    format: int
    task: str  # one of TASKS
    system: str  # "full", "full:NAME,NAME", "base", "experts:NAME", or the name of a baseline
    checkpoint: Checkpoint | None  # None for a baseline without a model
    settings: dict[str, Any]
    versions: dict[str, str]
    machine: str
    results: list[Result]
    against: NotRequired[list[Against]]
    seconds: float
    peak_memory_bytes: int


# ---- making a report


def checkpoints_of(reports: Sequence[Report]) -> list[Checkpoint]:
    """The different checkpoints of reports."""
    return list({one["sha256"]: one for report in reports if (one := report["checkpoint"])}.values())


def make_report(
    task: str,
    system: str,
    checkpoint: Checkpoint | None,
    settings: Mapping[str, Any],
    results: Sequence[Result],
    *,
    machine: str,
    seconds: float,
    peak_memory_bytes: int,
    against: Sequence[Against] = (),
) -> Report:
    """A report of these results, with the versions of the packages that made them."""
    report: Report = {
        "format": FORMAT,
        "task": task,
        "system": system,
        "checkpoint": checkpoint,
        "settings": dict(settings),
        "versions": package_versions(),
        "machine": machine,
        "results": list(results),
        "seconds": seconds,
        "peak_memory_bytes": peak_memory_bytes,
    }
    if against:
        report["against"] = list(against)
    return report


def make_result(
    records: Sequence[CaptionRecord] | Sequence[QuestionRecord],
    folder: str | Path,
    scored: Scored,
    *,
    dataset: str,
    split: str,
    limit: int | None,
    baselines: Mapping[str, Scored],
    seconds: float | None,
    parts: Mapping[str, Scored] | None = None,
) -> Result:
    """The result of one set of records.

    Args:
        records: the captioned images or questions that were scored.
        folder: their data folder.
        scored: the system's scores on them.
        dataset, split, limit: how the records were chosen.
        baselines, parts: scores of the baselines and of the experts' parts, by name.
        seconds: that the system took for all of the records, if it is known.
    """
    questions = any(isinstance(record, QuestionRecord) for record in records)
    result: Result = {
        "dataset": dataset,
        "split": split,
        "sha256": records_sha256(records, folder),
        "images": len({record.image for record in records}),
        "items": len(records),
        "limit": limit,
        "scores": score_entries(scored.scores),
        "missing": dict(scored.missing),
        "notes": dict(scored.notes),
        "baselines": {name: score_entries(baseline.scores) for name, baseline in baselines.items()},
    }
    if parts is not None:
        result["parts"] = {name: score_entries(part.scores) for name, part in parts.items()}
    if seconds is not None:
        result["seconds_per_item" if questions else "seconds_per_image"] = seconds / len(records)
    return result


def score_entries(scores: Scores) -> dict[str, ScoreEntry]:
    """Scores as JSON values."""
    return {name: {"value": score.value, "low": score.low, "high": score.high} for name, score in scores.items()}


def machine_name(device: str) -> str:
    """The device that a model ran on, in words: "cpu, 2 threads", or the name of the GPU."""
    import torch

    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{torch.device(device).type}, {threads} thread{'s' if threads > 1 else ''}"


# ---- the file


def write_report(report: Report, path: str | Path) -> None:
    """Write a report as JSON, whole or not at all."""
    write_whole(path, json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_report(path: str | Path) -> Report:
    """Read a report that `write_report` wrote.

    Raises:
        RSMoEError: when the file is missing or is no report of this format; the message names what is wrong.
    """
    file = Path(path)
    remedy = "give a file that `rsmoe evaluate --output` wrote"
    try:
        report = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise RSMoEError(f"report {file} cannot be read ({error.strerror}); {remedy}") from error
    except ValueError as error:
        raise RSMoEError(f"{file} is not JSON, so it is no report; {remedy}") from error
    found = report.get("format") if isinstance(report, dict) else None
    if found != FORMAT:
        raise RSMoEError(f"{file} is no report of format {FORMAT} (its format is {found!r}); {remedy}")
    problem = _problem(report)
    if problem:
        raise RSMoEError(f"{file} is a damaged report: {problem}; evaluate again")
    return report


_REPORT_TYPES: dict[str, Any] = {
    "task": str,
    "system": str,
    "checkpoint": (dict, type(None)),
    "settings": dict,
    "versions": dict,
    "machine": str,
    "results": list,
    "seconds": (int, float),
    "peak_memory_bytes": int,
}
_RESULT_TYPES: dict[str, Any] = {
    "dataset": str,
    "split": str,
    "sha256": str,
    "images": int,
    "items": int,
    "limit": (int, type(None)),
    "scores": dict,
    "missing": dict,
    "notes": dict,
    "baselines": dict,
    "parts": dict,
}


def _problem(report: dict[str, Any]) -> str | None:
    """What of a report is not as `Report` has it; None for a good one."""
    problem = _wrong_field(report, _REPORT_TYPES, "the report")
    if problem is None and report["task"] not in TASKS:
        problem = f"its task is {report['task']!r}, expected one of {', '.join(TASKS)}"
    if problem is None and report["checkpoint"] is not None:
        problem = _wrong_field(report["checkpoint"], {"name": str, "sha256": str}, "its checkpoint")
    if problem is None:
        problem = next(filter(None, map(_result_problem, report["results"], count(1))), None)
    if problem is None and not _is_comparison(report.get("against", [])):
        problem = '"against" is no list of differences'
    return problem


def _is_comparison(against: object) -> bool:
    return isinstance(against, list) and all(
        isinstance(other, dict)
        and isinstance(other.get("name"), str)
        and isinstance(other.get("differences"), list)
        and all(
            isinstance(one, dict)
            and _wrong_field(one, {"dataset": str, "items": int, "scores": dict}, "") is None
            and all(map(_is_score, one["scores"].values()))
            for one in other["differences"]
        )
        for other in against
    )


def _result_problem(result: object, number: int) -> str | None:
    where = f"result {number}"
    if not isinstance(result, dict):
        return f"{where} is {result!r}"
    problem = _wrong_field({"parts": {}} | result, _RESULT_TYPES, where)
    if problem is None:
        tables = [result["scores"], *result["baselines"].values(), *result.get("parts", {}).values()]
        if not all(isinstance(table, dict) and all(map(_is_score, table.values())) for table in tables):
            problem = f"{where} has a score without value, low and high"
    return problem


def _wrong_field(values: dict[str, Any], types: dict[str, Any], where: str) -> str | None:
    for name, kind in types.items():
        if name not in values:
            return f'{where} has no "{name}"'
        if not isinstance(values[name], kind):
            return f'"{name}" of {where} is {values[name]!r}'
    return None


def _is_score(entry: object) -> bool:
    return isinstance(entry, dict) and all(
        isinstance(entry.get(key), (int, float)) for key in ("value", "low", "high")
    )
