"""The report of an evaluation: one JSON file with scores, intervals, baselines and what they were made from.

`Scored` becomes plain JSON values of the types below; tables, pages and model cards are made from the file alone.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NotRequired, TypedDict, get_args, get_origin, get_type_hints, is_typeddict

from ..data.records import CaptionRecord, QuestionRecord, records_sha256
from ..errors_rsmoe import RSMoEError
from ..utils.files import check_input, parse_json, write_whole
from ..utils.provenance import package_versions
from ..utils.tables import count_of
from .scores import Scored, Scores


FORMAT = 1
TASKS = ("captioning", "vqa")
NO_IMAGE = ", no image"  # ends the name of a system that was given none
ALL_DATASETS = "all"  # the name of the result that pools several datasets
HEADLINE_SCORE = {"captioning": "CIDEr-D", "vqa": "accuracy"}  # where one score of a task has to do


class ScoreEntry(TypedDict):
    """A score (times 100) and the bounds of its 95 % interval."""

    value: float
    low: float
    high: float


class CheckpointEntry(TypedDict):
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
    limit: int | None  # the largest number of items, if not all were scored
    scores: dict[str, ScoreEntry]
    missing: dict[str, str]
    notes: dict[str, str]
    baselines: dict[str, dict[str, ScoreEntry]]
    references_in_train: NotRequired[float]  # captioning: the share that stands there word for word, times 100
    labelled_images: NotRequired[int]  # that have object labels: faithfulness and coverage are of these
    expert_texts: NotRequired[dict[str, dict[str, ScoreEntry]]]  # by expert, for captions by the full model
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
    checkpoint: CheckpointEntry | None  # None for a baseline without a model
    settings: dict[str, Any]  # of the generation; `fusion` is what "auto" came to
    versions: dict[str, str]
    machine: str
    results: list[Result]
    against: NotRequired[list[Against]]
    seconds: float
    peak_memory_bytes: int


# ---- making a report


def checkpoints_of(reports: Sequence[Report]) -> list[CheckpointEntry]:
    """The different checkpoints of reports.

    Args:
        reports: of any tasks.
    """
    return list({entry["sha256"]: entry for report in reports if (entry := report["checkpoint"])}.values())


def make_report(
    task: str,
    system: str,
    checkpoint: CheckpointEntry | None,
    settings: Mapping[str, Any],
    results: Sequence[Result],
    *,
    machine: str,
    seconds: float,
    peak_memory_bytes: int,
    against: Sequence[Against] = (),
) -> Report:
    """A report of these results, with the versions of the packages that made them.

    Args:
        task: one of `TASKS`.
        system: that was scored.
        checkpoint: None for a baseline without a model.
        settings: of the generation.
        results: of `make_result`.
        machine: in words.
        seconds: that all predictions took.
        peak_memory_bytes: of the process that made them.
        against: differences from other systems.
    """
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
    expert_texts: Mapping[str, Scored] | None = None,
) -> Result:
    """The result of one set of records.

    Args:
        records: the captioned images or questions that were scored.
        folder: their data folder.
        scored: the system's scores on them.
        dataset: that they are of.
        split: that they are of.
        limit: of the number of records, if not all were scored.
        baselines: their scores, by name.
        seconds: that the system took for all of the records, if it is known.
        expert_texts: scores of what the experts wrote, by expert.
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
    if expert_texts:
        result["expert_texts"] = {name: score_entries(of_expert.scores) for name, of_expert in expert_texts.items()}
    if seconds is not None:
        result["seconds_per_item" if questions else "seconds_per_image"] = seconds / len(records)
    return result


def score_entries(scores: Scores) -> dict[str, ScoreEntry]:
    """Scores as JSON values.

    Args:
        scores: by name.
    """
    return {name: {"value": score.value, "low": score.low, "high": score.high} for name, score in scores.items()}


def machine_name(device: str) -> str:
    """The device that a model ran on, in words: "cpu, 2 threads", or the name of the GPU.

    Args:
        device: as torch names it.
    """
    import torch

    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{torch.device(device).type}, {count_of(torch.get_num_threads(), 'thread')}"


# ---- the file


def write_report(report: Report, path: str | Path) -> None:
    """Write a report as JSON, whole or not at all.

    Args:
        report: of `make_report`.
        path: of the file.
    """
    write_whole(path, json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_report(path: str | Path) -> Report:
    """Read a report that `write_report` wrote.

    Args:
        path: of the file.

    Raises:
        RSMoEError: when the file is missing or is no report of this format; the message names what is wrong.
    """
    file = Path(path)
    remedy = "give a file that `rsmoe evaluate --output` wrote"
    check_input(file, "a report")
    try:
        report = parse_json(file.read_bytes())
    except ValueError as error:
        raise RSMoEError(f"{file} is not JSON, so it is no report; {remedy}") from error
    found = report.get("format") if isinstance(report, dict) else None
    if found != FORMAT:
        raise RSMoEError(f"{file} is no report of format {FORMAT} (its format is {found!r}); {remedy}")
    problem = _problem(report, Report, "the report")
    if problem is None and report["task"] not in TASKS:
        problem = f"its task is {report['task']!r}, expected one of {', '.join(TASKS)}"
    if problem:
        raise RSMoEError(f"{file} is a damaged report: {problem}; evaluate again")
    return report


def _problem(content: Any, expected: Any, where: str) -> str | None:
    """The first thing in a JSON value that is not of the expected type; None if all is right.

    The types are those of `Report`: typed dicts, `list[...]`, `dict[str, ...]`, unions with None, plain types.
    """
    origin, arguments = get_origin(expected), get_args(expected)
    if expected is Any or (content is None and type(None) in arguments):
        return None
    if type(None) in arguments:
        return _problem(content, arguments[0], where)
    json_type: Any = dict if is_typeddict(expected) else origin or expected
    json_type = (int, float) if json_type is float else json_type  # JSON may write 2.0 as 2
    if not isinstance(content, json_type):
        return f"{where} is {content!r}"
    inner: list[tuple[Any, Any, str]] = []  # values, their types, where they stand
    if is_typeddict(expected):
        missing = sorted(expected.__required_keys__ - content.keys())
        if missing:
            return f'{where} has no "{missing[0]}"'
        hints = get_type_hints(expected)
        inner = [(content[name], hint, f'"{name}" of {where}') for name, hint in hints.items() if name in content]
    elif origin is list:
        inner = [(item, arguments[0], f"item {number} of {where}") for number, item in enumerate(content, start=1)]
    elif origin is dict:
        inner = [(item, arguments[1], f'"{name}" of {where}') for name, item in content.items()]
    return next(filter(None, (_problem(*item) for item in inner)), None)
