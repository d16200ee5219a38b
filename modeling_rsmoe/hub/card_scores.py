"""Scores of reports as the Hub has them: a `model-index`, a table between two comments, and `.eval_results/`."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from huggingface_hub import EvalResult, EvalResultEntry, ModelCard, eval_result_entries_to_yaml
from huggingface_hub.repocard_data import eval_results_to_model_index
from huggingface_hub.utils import yaml_dump

from ..errors_rsmoe import RSMoEError
from ..evaluation.report import ALL_DATASETS, HEADLINE_SCORE, checkpoints_of
from ..utils.files import check_input, write_whole
from .folders import reading


START, END = "<!-- scores -->", "<!-- /scores -->"
EVAL_RESULTS = Path(".eval_results") / "rsmoe.yaml"  # beside the card

_TASKS = {"captioning": "image-to-text", "vqa": "visual-question-answering"}
_METRICS = {"CIDEr-D": "cider", "accuracy": "accuracy"}  # type of a metric on the Hub, by our name
_SYSTEMS = ("full", "base")  # the better answer to "how good is this model" first
_FRONT_MATTER = re.compile(r"\A---\n(.*?)^---\n", re.DOTALL | re.MULTILINE)
_TABLE = re.compile(rf"^{START}$.*?^{END}$", re.DOTALL | re.MULTILINE)
_MARK = re.compile(rf"^(?:{START}|{END})$", re.MULTILINE)
# A key at the start of a line and the lines below it that are indented, list items, comments or empty.
_MODEL_INDEX = re.compile(r"^model-index:.*\n(?:[ \t\-#].*\n|\n)*", re.MULTILINE)
_BENCHMARK = re.compile(r"[\w.-]+/[\w.-]+(:.+)?")

Report = Mapping[str, Any]
Measured = tuple[Report, Mapping[str, Any]]  # a report and one of its results


@dataclass(frozen=True)
class HubScores:
    """Of one checkpoint: the model-index, entries of benchmarks, and a line for all that was left out of both."""

    checkpoint: str
    index: list[EvalResult]
    entries: list[EvalResultEntry]
    left_out: list[str]


def hub_scores(reports: Sequence[Report], benchmarks: Mapping[str, str] | None = None) -> HubScores:
    """The scores of the system `full`; of `base` where there is no `full` on the same data.

    Args:
        reports: of one checkpoint, as `evaluation.report.read_report` gives them.
        benchmarks: "OWNER/DATASET" or "OWNER/DATASET:TASK" by our name of a dataset that is registered as a benchmark
            on the Hub, which takes no entries for others; TASK is of that dataset's eval.yaml, else "default".

    Raises:
        RSMoEError: reports of no or of several checkpoints, an unknown dataset or an impossible id among `benchmarks`.
    """
    checkpoints = checkpoints_of(cast(Any, reports))
    if len(checkpoints) != 1:
        names = ", ".join(f"{one['name']} ({one['sha256'][:12]})" for one in checkpoints) or "none"
        raise RSMoEError(f"a card holds scores of one checkpoint, these reports have: {names}; leave out the others")
    name = Path(checkpoints[0]["name"]).name  # of a folder or a repository, without what leads to it
    index, entries, left_out = [], [], []
    measured = _measured(reports)
    _check_benchmarks(benchmarks or {}, measured)
    for report, result in measured:
        data = f"{result['dataset']} {result['split']}"
        if result["limit"] is None:
            index += _eval_results(report, result)
        elif result["split"].startswith("test"):  # a model-index cannot say that a split was limited
            left_out.append(f"not in the model-index: {data}, which was limited to {result['limit']} items")
        entry = _entry(report, result, benchmarks) if benchmarks else None
        if isinstance(entry, str):
            left_out.append(f"no entry in {EVAL_RESULTS} for {data}: {entry}")
        elif entry:
            entries.append(entry)
    return HubScores(name, index, entries, left_out)


def write_scores(
    card: str | Path,
    reports: Sequence[Report],
    table: str,
    other_files: Sequence[str | Path] = (),
    benchmarks: Mapping[str, str] | None = None,
) -> list[str]:
    """Write scores into a model card that somebody wrote, into tables of other Markdown files and `.eval_results/`.

    Args:
        card: the card, or its folder, where it is README.md.
        reports: as of `hub_scores`.
        table: Markdown that goes between the lines ``<!-- scores -->`` and ``<!-- /scores -->`` of every file.
        other_files: more Markdown files with those lines.
        benchmarks: as of `hub_scores`.

    Returns:
        What was done and what was left out, a line each.

    Raises:
        RSMoEError: as of `hub_scores`; a missing card or mark, a card without front matter. Then nothing is written.
    """
    path = Path(card) / "README.md" if Path(card).is_dir() else Path(card)
    scores = hub_scores(reports, benchmarks)
    texts = with_tables([path, *other_files], table)
    texts[path] = _with_model_index(path, texts[path], scores)
    done = [write_changed(file, text) for file, text in texts.items()]
    return [*done, write_entries(path.parent / EVAL_RESULTS, scores.entries), *scores.left_out]


def with_tables(files: Sequence[str | Path], table: str) -> dict[Path, str]:
    """The texts of Markdown files with `table` between their marks; a missing file or mark raises."""
    texts = {}
    for path in map(Path, files):
        text = read_text(path)
        places = list(_TABLE.finditer(text))
        if len(places) != 1 or len(_MARK.findall(text)) != 2:  # marks inside a line are only spoken of
            remedy = f"write a line {START} and below it a line {END} where the table shall be, once each"
            raise RSMoEError(f"{path} has no place for scores: {remedy}")
        before, after = text[: places[0].start()], text[places[0].end() :]
        texts[path] = f"{before}{START}\n\n{table.strip()}\n\n{END}{after}"
    return texts


def write_changed(path: Path, text: str) -> str:
    """Write a file that does not say `text` already. Returns what was done, in a line."""
    changed = not path.is_file() or text != read_text(path)
    if changed:
        write_whole(path.resolve(), text)  # a link stays one
    return f"{path}: {'written' if changed else 'unchanged'}"


def write_entries(path: Path, entries: Sequence[EvalResultEntry]) -> str:
    """Write entries of benchmarks, or remove the file that held some. Returns what was done, in a line."""
    if not entries and not path.exists():
        return f"{path}: not written, without entries"
    if not entries:
        path.unlink()
        return f"{path}: removed, without entries"
    text = yaml_dump(eval_result_entries_to_yaml(list(entries)), sort_keys=False)
    return f"{write_changed(path, text)}, {len(entries)} {'entries' if len(entries) > 1 else 'entry'}"


def read_text(path: Path) -> str:
    """The text of a Markdown file; an RSMoEError says why it cannot be read."""
    with reading(f"{path} cannot be read", "give a model card or another Markdown file"):
        check_input(path, "a Markdown file")
        return path.read_text(encoding="utf-8")


def dataset_id(name: str) -> str:
    """Our name of a dataset in the spelling of an id: "RSVQA-LR" -> "rsvqa-lr"."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _measured(reports: Sequence[Report]) -> list[Measured]:
    """Report and result for each split of a dataset, of the first of `_SYSTEMS` that was measured on it."""
    measured: dict[tuple[str, ...], Measured] = {}
    of_systems = [report for system in _SYSTEMS for report in reports if report["system"] == system]
    for report in of_systems:
        for result in report["results"]:
            if result["dataset"] == ALL_DATASETS:  # several datasets pooled: no dataset that the Hub could know
                continue
            key = (report["task"], result["dataset"], result["split"])
            other_report, other = measured.setdefault(key, (report, result))
            if other_report["system"] == report["system"] and other != result:
                where = f"{report['system']} on {result['dataset']} {result['split']}"
                raise RSMoEError(f"two reports have different scores of {where}; leave one of them out")
    return list(measured.values())


def _eval_results(report: Report, result: Mapping[str, Any]) -> list[EvalResult]:
    """The headline score of a test split, and nothing else: a page of metadata is read by nobody."""
    name = HEADLINE_SCORE[report["task"]]
    if name not in result["scores"] or not result["split"].startswith("test"):
        return []
    # dataset_type is our own name of the dataset: the data was read from a folder, not from a dataset on the Hub.
    return [
        EvalResult(
            task_type=_TASKS[report["task"]],
            dataset_type=dataset_id(result["dataset"]),
            dataset_name=result["dataset"],
            dataset_split=result["split"],
            metric_type=_METRICS[name],
            metric_name=name if report["system"] == "full" else f"{name} (base LM alone)",
            metric_value=round(result["scores"][name]["value"], 2),
        )
    ]


def _with_model_index(path: Path, text: str, scores: HubScores) -> str:
    """`text` with a new model-index; every other line of the front matter stays as it is, comments too."""
    front = _FRONT_MATTER.match(text)
    if front is None:
        raise RSMoEError(f"{path} has no front matter; a model card starts with a line ---, metadata and a line ---")
    index = {"model-index": eval_results_to_model_index(scores.checkpoint, scores.index)}
    block = yaml_dump(index, sort_keys=False) if scores.index else ""
    lines = front.group(1)
    old = _MODEL_INDEX.search(lines)
    start, end = old.span() if old else (len(lines), len(lines))
    new = f"---\n{lines[:start]}{block}{lines[end:]}---\n{text[front.end() :]}"
    with reading(f"the front matter of {path} is no metadata of a model card", "repair it"):
        read = ModelCard(new).data.get("eval_results", [])
    if read != scores.index:
        raise RSMoEError(f"the front matter of {path} cannot hold a model-index; does it have two of them?")
    return new


def _check_benchmarks(benchmarks: Mapping[str, str], measured: Sequence[Measured]) -> None:
    datasets = sorted({result["dataset"] for _, result in measured})
    for dataset, benchmark in benchmarks.items():
        if dataset not in datasets:
            raise RSMoEError(f'no report has the dataset "{dataset}"; known: {", ".join(datasets)}')
        if not _BENCHMARK.fullmatch(benchmark):
            raise RSMoEError(f'"{benchmark}" is no dataset of the Hub; write OWNER/DATASET or OWNER/DATASET:TASK')


def _entry(report: Report, result: Mapping[str, Any], benchmarks: Mapping[str, str]) -> EvalResultEntry | str:
    """The entry for the complete test set of a registered benchmark, or why a result has none."""
    metric = HEADLINE_SCORE[report["task"]]
    if result["dataset"] not in benchmarks:
        return f'no benchmark on the Hub is known for "{result["dataset"]}"'
    if not result["split"].startswith("test") or result["limit"] is not None:
        return "leaderboards are for whole test sets"
    if metric not in result["scores"]:
        return f"the report has no {metric}"
    dataset, _, task = benchmarks[result["dataset"]].partition(":")
    return EvalResultEntry(
        dataset_id=dataset,
        task_id=task or "default",
        value=round(result["scores"][metric]["value"], 2),
        notes=f"{metric}, {report['system']}, {result['split']}, {result['items']} items",
    )
