"""Markdown tables of reports: one for each set of images, a row for each system and baseline.

Made from the reports alone, so that a table can be made again at any time. Published scores of others have no place
here: they were made on other images, or by other code.
"""

import json
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from ..errors_rsmoe import RSMoEError
from ..utils.tables import count_of, escaped, markdown_table
from .report import HEADLINE_SCORE, NO_IMAGE, Difference, Report, Result, ScoreEntry, checkpoints_of


# Scores that stand in the report but not in tables: between their neighbors, or printed by hardly any paper.
_LEFT_OUT = ("BLEU-2", "BLEU-3", "CIDEr")
_SYSTEMS = {"full": "full model", "base": "base LM alone"}
_RETRIEVES = ("retrieval", "nearest")  # of the baselines
_SEE_THE_IMAGE = (*_RETRIEVES, "start")
_BASELINES = {
    ("constant", "captioning"): "the most frequent training caption",
    ("retrieval", "captioning"): "retrieval: the training caption that the reranker likes best",
    ("nearest", "captioning"): "captions of the most similar training images",
    ("human", "captioning"): "human: all reference captions of an image together",
    ("start", "captioning"): "the checkpoint before this training",
    ("constant", "vqa"): "the most frequent training answer to the type",
    ("question-only", "vqa"): "guessed from the question alone",
}

Group = list[tuple[Report, Result]]  # results on the same data, with the reports that they are of


@dataclass(frozen=True)
class SystemScores:
    """A row of a table."""

    label: str  # of the system or baseline
    scores: Mapping[str, ScoreEntry]
    seconds: float | None = None  # per image or question, if it is known


def score_tables(reports: Sequence[Report]) -> str:
    """The tables of some reports of one task, with what they were made from below. Test splits come first.

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
    tables = [_table(group) for group in _by_data(reports)]
    by_split = sorted(reports, key=lambda report: split_order(report["results"][0]["split"]))
    tables += [_difference_table(report) for report in by_split if "against" in report]
    return "\n\n".join([*tables, _footer(reports)]) + "\n"


def folded_tables(reports: Sequence[Report]) -> str:
    """`score_tables` of each task and split, folded, test splits first: HTML that GitHub, the Hub and a site of
    Markdown pages (md_in_html) show as a line to click on.

    Args:
        reports: of any tasks, in the order in which their systems shall stand.
    """
    of_split: dict[tuple[bool, str, str], list[Report]] = defaultdict(list)
    for report in reports:
        splits = sorted({result["split"] for result in report["results"]})
        of_split[not splits[0].startswith("test"), report["task"], ", ".join(splits)].append(report)
    folded = []
    for key in sorted(of_split):
        title = f"{'Captions' if key[1] == 'captioning' else 'Answers'}, {escaped(key[2])}: every score and baseline"
        tables = score_tables(of_split[key])
        folded.append(f"<details markdown>\n<summary>{title}</summary>\n\n{tables}\n</details>")
    return "\n\n".join(folded) + "\n"


def summary_table(reports: Sequence[Report]) -> str:
    """One short table: a row for each set of test images (of all images, where there is no test split), with the
    headline score of the full model and its interval, and without intervals of its base LM alone, of the best that
    copies from the training data what was said of similar images, and of the best that does not see the image.

    Args:
        reports: of any tasks.
    """
    groups = _by_data(reports)
    rows = []
    for group in [group for group in groups if group[0][1]["split"].startswith("test")] or groups:
        task = group[0][0]["task"]
        name = HEADLINE_SCORE[task]
        systems = {report["system"]: result["scores"] for report, result in group}
        others = [(report["system"], result["scores"]) for report, result in group if _is_baseline(report)]
        others += [one for _, result in group for one in result["baselines"].items()]
        beside = (
            [systems["base"]] if "base" in systems else [],
            [scores for other, scores in others if other in _RETRIEVES],
            [scores for other, scores in others if other not in _SEE_THE_IMAGE],
        )
        cells = [_cell(systems.get("full", {}).get(name)), *(_highest(scores, name) for scores in beside)]
        rows.append([headline(group[0][1], task), name, *cells])
    header = ["", "score", *_SYSTEMS.values(), "retrieval", "without the image"]
    measured = [index for index in range(len(header)) if index < 2 or any(row[index] for row in rows)]
    header, *rows = ([row[index] for index in measured] for row in (header, *rows))
    return markdown_table(header, rows, texts=2) + "\n"


def rows_of(group: Group) -> list[SystemScores]:
    """The rows for results on the same data: the systems, captions looked up in the train split, what the experts
    wrote, the other baselines (each once).

    Args:
        group: at least one result.
    """
    systems: list[SystemScores] = []
    lookups: list[SystemScores] = []
    experts: list[SystemScores] = []
    baselines: list[SystemScores] = []
    with_checkpoint = len(checkpoints_of([report for report, _ in group])) > 1
    for label, (report, result) in zip(_labels([report for report, _ in group]), group, strict=True):
        seconds = result.get("seconds_per_image", result.get("seconds_per_item"))
        of_kind = lookups if _retrieves(report) else baselines if _is_baseline(report) else systems
        of_kind.append(SystemScores(label, result["scores"], seconds))
        for name, scores in result.get("expert_texts", {}).items():
            experts.append(SystemScores(f"{label}: text of the {name} expert", scores))
    for name in dict.fromkeys([*_RETRIEVES, *(name for _, result in group for name in result["baselines"])]):
        for report, result in group:
            if name in result["baselines"]:
                label = _baseline_label(name, report, with_checkpoint and name in _SEE_THE_IMAGE)
                of_kind = lookups if name in _RETRIEVES else baselines
                of_kind.append(SystemScores(label, result["baselines"][name]))
    by_label: dict[str, SystemScores] = {}
    for row in systems + lookups + experts + baselines:
        by_label.setdefault(row.label, row)
    return list(by_label.values())


def difference_rows(report: Report) -> tuple[list[str], list[tuple[str, Difference]]]:
    """The names of the scores, and a row for each other system and dataset: its label, and ours minus its scores.

    Args:
        report: with or without differences.
    """
    rows = [
        (_baseline_label(against["name"], report), one)
        for against in report.get("against", ())
        for one in against["differences"]
    ]
    return list(dict.fromkeys(name for _, one in rows for name in one["scores"])), rows


def shown_scores(tables: Iterable[Mapping[str, ScoreEntry]]) -> list[str]:
    """The names of the scores to show, in order: without those that say little beside their neighbors.

    Args:
        tables: scores by name.
    """
    return list(dict.fromkeys(name for scores in tables for name in scores if name not in _LEFT_OUT))


def headline(result: Result, task: str) -> str:
    """What was scored: "RSICD, val (1,094 images)".

    Args:
        result: of a report.
        task: of the report.
    """
    size = count_of(result["images"], "image")
    if task == "vqa":
        size = f"{count_of(result['items'], 'question')} about {size}"
    limit = f", limited to {result['limit']:,}" if result["limit"] is not None else ""
    return f"{result['dataset']}, {result['split']} ({size}{limit})"


def data_note(result: Result) -> str:
    """How many of the references stand in the train split, and how many images have object labels, as far as known.

    Args:
        result: of a report.
    """
    notes = []
    if (share := result.get("references_in_train")) is not None:
        notes.append(f"{share:.1f} % of the references stand word for word in the train split.")
    if (labelled := result.get("labelled_images")) is not None:
        notes.append(f"Faithfulness and coverage are of {count_of(labelled, 'image')} with object labels.")
    return " ".join(notes)


# ---- tables


def _by_data(reports: Sequence[Report]) -> list[Group]:
    """The results on the same data together; those on test splits first, then by split."""
    groups: dict[Hashable, Group] = defaultdict(list)
    for report in reports:
        for result in report["results"]:
            key = (report["task"], result["dataset"], result["split"], result["sha256"])
            groups[key].append((report, result))
    return sorted(groups.values(), key=lambda group: split_order(group[0][1]["split"]))


def split_order(split: str) -> tuple[bool, str]:
    """For sorting: test splits first, which no choice was made on.

    Args:
        split: its name.
    """
    return not split.startswith("test"), split


def _table(group: Group) -> str:
    systems, task = rows_of(group), group[0][0]["task"]
    names = shown_scores(system.scores for system in systems)
    header = ["system", *names]
    rows = [[system.label, *(_cell(system.scores.get(name)) for name in names)] for system in systems]
    if any(system.seconds is not None for system in systems):
        header.append(f"s / {'question' if task == 'vqa' else 'image'}")
        for row, system in zip(rows, systems, strict=True):
            row.append("" if system.seconds is None else f"{system.seconds:.2f}")
    parts = [f"**{escaped(headline(group[0][1], task))}**", markdown_table(header, rows, texts=1)]
    return "\n\n".join([*parts, *filter(None, [data_note(group[0][1])])])


def _difference_table(report: Report) -> str:
    """The report's system minus others on the same items."""
    names, differences = difference_rows(report)
    rows = [
        [other, one["dataset"], f"{one['items']:,}", *(_cell(one["scores"].get(name), "+") for name in names)]
        for other, one in differences
    ]
    splits = ", ".join(dict.fromkeys(result["split"] for result in report["results"]))
    title = f"**{escaped(_labels([report])[0])}, {escaped(splits)}: differences, with paired intervals**"
    return f"{title}\n\n{markdown_table(['minus', 'on', 'items', *names], rows, texts=2)}"


def _cell(score: ScoreEntry | None, sign: str = "") -> str:
    if score is None:
        return ""
    value, low, high = (f"{score[bound]:{sign}.1f}" for bound in ("value", "low", "high"))  # type: ignore[literal-required]
    return f"{value} [{low}, {high}]"


def _highest(scores: Sequence[Mapping[str, ScoreEntry]], name: str) -> str:
    return f"{max(values):.1f}" if (values := [one[name]["value"] for one in scores if name in one]) else ""


def _is_baseline(report: Report) -> bool:
    return report["system"].endswith(NO_IMAGE) or (report["system"], report["task"]) in _BASELINES


def _retrieves(report: Report) -> bool:
    return report["system"] in _RETRIEVES


def _baseline_label(name: str, report: Report, with_checkpoint: bool = False) -> str:
    label = _BASELINES.get((name, report["task"]), name)
    checkpoint = report["checkpoint"]
    return f"{checkpoint['name']}, {label}" if with_checkpoint and checkpoint else label


def _labels(reports: Sequence[Report]) -> list[str]:
    """A label for each report; reports with the same label are distinguished by the settings that differ."""
    with_checkpoint = len(checkpoints_of(reports)) > 1
    labels = [_label(report, with_checkpoint) for report in reports]
    unique_labels = []
    for label, report in zip(labels, reports, strict=True):
        settings_of_label = [other["settings"] for name, other in zip(labels, reports, strict=True) if name == label]
        differing = [
            f"{name} {value}"
            for name, value in report["settings"].items()
            if len({json.dumps(settings.get(name), sort_keys=True) for settings in settings_of_label}) > 1
        ]
        unique_labels.append(label + (f" ({', '.join(differing)})" if differing else ""))
    return unique_labels


def _label(report: Report, with_checkpoint: bool) -> str:
    system = report["system"].removesuffix(NO_IMAGE)
    kind, _, experts = system.partition(":")
    if kind == "experts":
        label = f"{experts} expert alone"
    elif experts:
        label = f"full model, experts {experts.replace(',', ', ')}"
    else:
        label = _SYSTEMS.get(system) or _BASELINES.get((system, report["task"]), system)
    if system != report["system"]:
        label += " without the image"
    checkpoint = report["checkpoint"]
    return f"{checkpoint['name']}, {label}" if with_checkpoint and checkpoint else label


# ---- what stands below


def _footer(reports: Sequence[Report]) -> str:
    results = [result for report in reports for result in report["results"]]
    lines = ["In brackets: bootstrap 95 % intervals. Scores are times 100, except lengths"]
    lines += [f"{name} is missing: {reason}" for result in results for name, reason in result["missing"].items()]
    notes = [(name, note) for result in results for name, note in result["notes"].items()]
    lines += [f"{name}: {note}" for name, note in notes if name not in _LEFT_OUT]
    lines += [f"Checkpoint {entry['name']}: sha256 {entry['sha256'][:12]}" for entry in checkpoints_of(reports)]
    data = dict.fromkeys(f"{result['dataset']} {result['split']} {result['sha256'][:12]}" for result in results)
    lines.append(f"Data: {', '.join(data)} (sha256 of records and images)")
    for report in reports:
        versions = ", ".join(map(" ".join, report["versions"].items()))
        lines.append(f"Made with {versions} on {report['machine']}")
    memory = max(report["peak_memory_bytes"] for report in reports)
    lines.append(f"Peak memory: {memory / 1e9:.1f} GB")
    return "\n".join(f"- {escaped(line).rstrip('.')}." for line in dict.fromkeys(lines))
