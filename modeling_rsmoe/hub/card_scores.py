"""Scores of reports as the Hub has them: a `model-index`, a table between two marks of a file, and `.eval_results/`.

Files say exactly what the reports given say: writing again replaces what was written before, and writing the same
again changes nothing. Knows reports only as plain JSON values.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import yaml

from ..errors_rsmoe import RSMoEError
from ..evaluation.report import checkpoints_of
from ..utils.files import write_whole


if TYPE_CHECKING:
    from huggingface_hub import EvalResult, EvalResultEntry

START, END = "<!-- scores -->", "<!-- /scores -->"
EVAL_RESULTS = Path(".eval_results") / "rsmoe.yaml"  # beside the card

_TASKS = {"captioning": "image-to-text", "vqa": "visual-question-answering"}
# Type of a metric on the Hub by our name; scores without one stay out of the model-index.
_METRICS = {f"BLEU-{n}": "bleu" for n in range(1, 5)} | {"METEOR": "meteor", "ROUGE-L": "rouge", "SPICE": "spice"}
_METRICS |= {"CIDEr-D": "cider", "accuracy": "accuracy", "average": "accuracy", "exact": "accuracy"}
_HEADLINE = {"captioning": "CIDEr-D", "vqa": "accuracy"}
_SYSTEMS = ("full", "base")  # the better answer to "how good is this model" first
_FRONT_MATTER = re.compile(r"\A---\n(.*?)^---\n", re.DOTALL | re.MULTILINE)
_TABLE = re.compile(rf"^{START}$.*?^{END}$", re.DOTALL | re.MULTILINE)
_MARK = re.compile(rf"^(?:{START}|{END})$", re.MULTILINE)
# A key at the start of a line and the lines below it that are indented, list items, comments or empty.
_MODEL_INDEX = re.compile(r"^model-index:.*\n(?:[ \t\-#].*\n|\n)*", re.MULTILINE)

Report = Mapping[str, Any]


@dataclass(frozen=True)
class HubScores:
    """What reports of one checkpoint come to on the Hub: its name, the model-index, entries of benchmarks, and what was
    left out of both, a line each."""

    checkpoint: str
    index: "list[EvalResult]"
    entries: "list[EvalResultEntry]"
    left_out: list[str]

    @property
    def datasets(self) -> list[str]:
        """Names as in the model-index, each once."""
        return list(dict.fromkeys(one.dataset_type for one in self.index))

    @property
    def metrics(self) -> list[str]:
        """Types as in the model-index, each once."""
        return list(dict.fromkeys(one.metric_type for one in self.index))


def hub_scores(reports: Sequence[Report], benchmarks: Mapping[str, str] | None = None) -> HubScores:
    """The scores of the system `full`; of `base` where there is no `full` on the same data.

    Args:
        reports: of one checkpoint, as `evaluation.report.read_report` gives them.
        benchmarks: for datasets that are registered as benchmarks on the Hub, "OWNER/DATASET" or
            "OWNER/DATASET:TASK" by our name of the dataset; TASK is the one in that dataset's eval.yaml ("default").
            Nothing is entered for other datasets: the Hub accepts entries for registered benchmarks only.

    Raises:
        RSMoEError: reports of no or of several checkpoints, an unknown dataset or an impossible id among `benchmarks`.
    """
    name = _checkpoint_name(reports)
    results = _measured(reports)
    entries, skipped = _entries(results, benchmarks or {})
    results, limited = _split_limited(results)
    index = [score for report, result in results for score in _eval_results(report, result)]
    return HubScores(name, index, entries, [*limited, *(skipped if benchmarks else [])])


def write_scores(
    card: str | Path,
    reports: Sequence[Report],
    table: str,
    other_files: Sequence[str | Path] = (),
    benchmarks: Mapping[str, str] | None = None,
) -> list[str]:
    """Write the scores of `reports` into a model card of one's own, into tables of other Markdown files and into
    `.eval_results/`.

    The table is written between the lines ``<!-- scores -->`` and ``<!-- /scores -->`` of every file.

    Args:
        card: the card, or its folder, where it is README.md.
        reports, benchmarks: as of `hub_scores`.
        table: the Markdown text that goes between the marks.
        other_files: more Markdown files with marks.

    Returns:
        What was done and what was left out, a line each.

    Raises:
        RSMoEError: as of `hub_scores`; for a missing card or mark, a card without front matter. Then nothing is written.
    """
    path = Path(card) / "README.md" if Path(card).is_dir() else Path(card)
    scores = hub_scores(reports, benchmarks)
    texts = {path: _with_model_index(path, _with_table(path, _read(path), table), scores)}
    texts |= with_tables(other_files, table)
    done = [write_changed(file, text) for file, text in texts.items()]
    return [*done, write_entries(path.parent / EVAL_RESULTS, scores.entries), *scores.left_out]


def with_tables(files: Sequence[str | Path], table: str) -> dict[Path, str]:
    """The texts of Markdown files with `table` between their marks; a missing file or mark raises."""
    return {path: _with_table(path, _read(path), table) for path in map(Path, files)}


def write_changed(path: Path, text: str) -> str:
    """Write a file that does not say `text` already. Returns what was done, in a line."""
    changed = not path.is_file() or text != _read(path)
    if changed:
        write_whole(path, text)
    return f"{path}: {'written' if changed else 'unchanged'}"


# ---- which scores


def _checkpoint_name(reports: Sequence[Report]) -> str:
    checkpoints = checkpoints_of(cast(Any, reports))
    if len(checkpoints) != 1:
        found = ", ".join(f"{one['name']} ({one['sha256'][:12]})" for one in checkpoints) or "none"
        raise RSMoEError(
            f"a card holds the scores of one checkpoint, these reports have: {found}; leave out the others"
        )
    return Path(checkpoints[0]["name"]).name  # of a folder or a repository, without what leads to it


def _measured(reports: Sequence[Report]) -> list[tuple[Report, Mapping[str, Any]]]:
    """Report and result for each split of a dataset, of the first of `_SYSTEMS` that was measured on it."""
    kept: dict[tuple[str, ...], tuple[Report, Mapping[str, Any]]] = {}
    for system in _SYSTEMS:
        for report in reports:
            if report["system"] == system:
                for result in report["results"]:
                    if result["dataset"] == "all":  # several datasets pooled: no dataset that the Hub could know
                        continue
                    key = (report["task"], result["dataset"], result["split"])
                    if (other := kept.get(key)) and other[0]["system"] == system and other[1] != result:
                        raise RSMoEError(
                            f"two reports have different scores of {system} on {result['dataset']} {result['split']}; "
                            "leave one of them out"
                        )
                    kept.setdefault(key, (report, result))
    return list(kept.values())


def _split_limited(
    results: Sequence[tuple[Report, Mapping[str, Any]]],
) -> tuple[list[tuple[Report, Mapping[str, Any]]], list[str]]:
    """The results on whole splits, and a line for each of the others: a model-index cannot say that they are not."""
    whole = [(report, result) for report, result in results if result["limit"] is None]
    lines = [
        f"not in the model-index: {result['dataset']} {result['split']}, which was limited to {result['limit']} items"
        for _, result in results
        if result["limit"] is not None
    ]
    return whole, lines


# ---- model-index


def _with_model_index(path: Path, text: str, scores: HubScores) -> str:
    """`text` with a new model-index; every other line of the front matter stays as it is."""
    from huggingface_hub import ModelCard
    from huggingface_hub.repocard_data import eval_results_to_model_index
    from huggingface_hub.utils import yaml_dump

    front = _FRONT_MATTER.match(text)
    if front is None:
        raise RSMoEError(f"{path} has no front matter; a model card starts with a line ---, metadata and a line ---")
    index = eval_results_to_model_index(scores.checkpoint, scores.index)
    block = yaml_dump({"model-index": index}, sort_keys=False) if scores.index else ""
    lines = front.group(1)
    old = _MODEL_INDEX.search(lines)
    lines = lines[: old.start()] + block + lines[old.end() :] if old else lines + block
    new = f"---\n{lines}---\n{text[front.end() :]}"
    try:
        read = ModelCard(new).data.get("eval_results", [])
    except (yaml.YAMLError, ValueError, TypeError) as error:
        raise RSMoEError(f"the front matter of {path} is no metadata of a model card ({error}); repair it") from error
    if read != scores.index:
        raise RSMoEError(f"the front matter of {path} cannot hold a model-index; does it have two of them?")
    return new


def dataset_id(name: str) -> str:
    """Our name of a dataset in the spelling of an id: "RSVQA-LR" -> "rsvqa-lr"."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _eval_results(report: Report, result: Mapping[str, Any]) -> "list[EvalResult]":
    from huggingface_hub import EvalResult

    # dataset_type is our own name of the dataset: the data was read from a folder, not from a dataset on the Hub.
    return [
        EvalResult(
            task_type=_TASKS[report["task"]],
            dataset_type=dataset_id(result["dataset"]),
            dataset_name=result["dataset"],
            dataset_split=result["split"],
            metric_type=_METRICS[name.partition(":")[0]],
            metric_name=name if report["system"] == "full" else f"{name} (base LM alone)",
            metric_value=round(score["value"], 2),
        )
        for name, score in result["scores"].items()
        if name.partition(":")[0] in _METRICS
    ]


# ---- tables


def _with_table(path: Path, text: str, table: str) -> str:
    places = list(_TABLE.finditer(text))
    if len(places) != 1 or len(_MARK.findall(text)) != 2:  # marks inside a line are only spoken of
        raise RSMoEError(
            f"{path} has no place for scores: write a line {START} and below it a line {END} where the table shall be, "
            "once each"
        )
    return f"{text[: places[0].start()]}{START}\n\n{table.strip()}\n\n{END}{text[places[0].end() :]}"


# ---- .eval_results


def _entries(
    results: Sequence[tuple[Report, Mapping[str, Any]]], benchmarks: Mapping[str, str]
) -> tuple[list["EvalResultEntry"], list[str]]:
    """Entries for whole test sets of registered benchmarks, and why the other results have none."""
    from huggingface_hub import EvalResultEntry
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    known = sorted({result["dataset"] for _, result in results})
    for dataset, benchmark in benchmarks.items():
        if dataset not in known:
            raise RSMoEError(f'no report has the dataset "{dataset}"; known: {", ".join(known)}')
        try:
            validate_repo_id(benchmark.partition(":")[0])
            owned = "/" in benchmark
        except HFValidationError:
            owned = False
        if not owned:
            raise RSMoEError(f'"{benchmark}" is no dataset of the Hub; write OWNER/DATASET or OWNER/DATASET:TASK')
    entries, skipped = [], []
    for report, result in results:
        name, what = result["dataset"], f"{result['dataset']} {result['split']}"
        if name not in benchmarks:
            reason = f'no benchmark on the Hub is known for "{name}"'
        elif not result["split"].startswith("test") or result["limit"] is not None:
            reason = "leaderboards are for whole test sets"
        elif (metric := _HEADLINE[report["task"]]) not in result["scores"]:
            reason = f"the report has no {metric}"
        else:
            dataset, _, task = benchmarks[name].partition(":")
            entries.append(
                EvalResultEntry(
                    dataset_id=dataset,
                    task_id=task or "default",
                    value=round(result["scores"][metric]["value"], 2),
                    notes=f"{metric}, {report['system']}, {result['split']}, {result['items']} items",
                )
            )
            continue
        skipped.append(f"no entry in {EVAL_RESULTS} for {what}: {reason}")
    return entries, skipped


def write_entries(path: Path, entries: Sequence["EvalResultEntry"]) -> str:
    """Write entries of benchmarks, or remove the file that held some. Returns what was done, in a line."""
    from huggingface_hub import eval_result_entries_to_yaml
    from huggingface_hub.utils import yaml_dump

    old = path.read_text(encoding="utf-8") if path.exists() else None
    if not entries:
        path.unlink(missing_ok=True)
        return f"{path}: {'removed' if old is not None else 'not written'}, without entries"
    text = yaml_dump(eval_result_entries_to_yaml(list(entries)), sort_keys=False)
    if text != old:
        write_whole(path, text)
    count = f"{len(entries)} {'entries' if len(entries) > 1 else 'entry'}"
    return f"{path}: {'unchanged' if text == old else 'written'}, {count}"


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise RSMoEError(f"{path} cannot be read ({reason}); give a model card or another Markdown file") from error
