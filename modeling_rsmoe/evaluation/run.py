"""One evaluation from the data folder to its results: which records, what their predictions score, beside baselines.

`select` before a model is loaded, `predictions_by_model` (or `predictions_by_baseline`), `evaluate` on those;
`cli/evaluate.py` is these three in a row.
"""

import functools
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..data.labels import read_objects
from ..data.records import QUESTIONS_FILE, QuestionRecord, read_captions, read_questions
from ..errors_rsmoe import RSMoEError
from ..utils.extras import require
from ..utils.files import only_writer
from ..utils.progress import Progress, no_progress
from ..utils.provenance import folder_sha256, peak_memory, weights_sha256
from .baselines import constant_answers, constant_caption, question_only_answers, share_in_train, unseen_captions
from .captions import score_captions
from .intervals import interval, paired_difference
from .objects import COVERAGE, FAITHFULNESS, ObjectLabels, object_labels, score_mentions
from .page import ScoredItem
from .predict import Key, Line, Record, instruction_of, key_of, key_of_line, predict, record_fields, text_field
from .report import (
    ALL_DATASETS,
    NO_IMAGE,
    Against,
    CheckpointEntry,
    Difference,
    Report,
    Result,
    machine_name,
    make_report,
    make_result,
    score_entries,
)
from .scores import Scored
from .vqa import score_answers


if TYPE_CHECKING:
    from ..inference import GenerationSettings

Task = Literal["captioning", "vqa"]
TRAIN = "train"
# Baselines that need no model: the same caption for every image (or answer for every question of a type); the answer
# that training questions of the same words have.
CONSTANT, QUESTION_ONLY = "constant", "question-only"
HUMAN = "human"  # all reference captions of an image together, by its object labels
START = "start"  # the checkpoint that a training began with
# Scores that are means over items. BLEU and METEOR are not: they are made from sums over all items.
PAIRED = ("ROUGE-L", "CIDEr-D", "accuracy")
RESAMPLED = (FAITHFULNESS, COVERAGE)  # nor these: their differences are those of the drawn scores
TEXT_BASELINES: dict[Task, tuple[str, ...]] = {"captioning": (CONSTANT,), "vqa": (CONSTANT, QUESTION_ONLY)}


@dataclass(frozen=True)
class Selection:
    """The records to evaluate, and those that baselines learn from."""

    folder: Path  # the data folder
    task: Task
    split: str  # as a report names it: of unseen captions it is "unseen val"
    limit: int | None  # of each dataset's records, if not all are evaluated
    records: dict[str, list[Any]]  # captioned images or questions, by dataset
    train: list[Any]  # may be empty
    objects: Mapping[Path, ObjectLabels] = field(default_factory=dict)  # of some of the captioned images

    def all(self) -> list[Any]:
        """The records of all datasets."""
        return [record for records in self.records.values() for record in records]


@dataclass(frozen=True)
class Predictions:
    """Predictions and what made them."""

    system: str  # as a report names it
    lines: dict[Key, Line]  # by the records' keys
    checkpoint: CheckpointEntry | None = None  # None if no model of ours made them
    settings: dict[str, Any] = field(default_factory=dict)  # that the model generated with
    device: str = "cpu"  # that the model ran on


@dataclass(frozen=True)
class Evaluated:
    """The scores of one dataset and what they were made of, item by item in one order."""

    result: Result  # as the report has it
    records: Sequence[Record]
    predictions: Sequence[Line]
    scored: Scored
    baselines: Mapping[str, Scored]


def select(
    folder: Path,
    task: Task,
    split: str,
    datasets: Collection[str] | None = None,
    limit: int | None = None,
    questions_file: str = QUESTIONS_FILE,
    unseen: bool = False,
) -> Selection:
    """The records of a split, checked.

    Args:
        folder: the data folder.
        task: which records.
        split: of the folder's.
        datasets: only these.
        limit: of each dataset, evenly spread.
        questions_file: of the data folder.
        unseen: only images of whose captions none stands in train word for word, so that a look-up cannot have it.

    Raises:
        RSMoEError: as of the functions of `data.records` and of `read_objects`; a dataset without this split; an image
            that stands twice, or in two splits; pycocoevalcap is missing.
    """
    if task == "captioning":
        require("pycocoevalcap", "eval")
    read: Callable[..., list[Any]] = (
        read_captions if task == "captioning" else functools.partial(read_questions, name=questions_file)
    )
    records = read(folder, split, datasets)
    for dataset in dict.fromkeys(datasets or ()):
        if not any(record.dataset == dataset for record in records):
            known = sorted({record.split for record in read(folder, None, [dataset])})
            raise RSMoEError(f'dataset "{dataset}" has no split "{split}"; it has {", ".join(known)}')
    by_dataset: dict[str, list[Any]] = {}
    for record in records:
        by_dataset.setdefault(record.dataset, []).append(record)
    try:
        train = [] if split == TRAIN else read(folder, TRAIN)
    except RSMoEError:  # no such split: baselines that learn from it are left out
        train = []
    _check_images(records, train, folder)
    if unseen:
        captions = _captions(train)
        by_dataset = {dataset: unseen_captions(of_dataset, captions) for dataset, of_dataset in by_dataset.items()}
        if empty := [dataset for dataset, of_dataset in by_dataset.items() if not of_dataset]:
            raise RSMoEError(
                f'split "{split}" of {", ".join(empty)} has only captions that stand in "{TRAIN}": leave '
                "the dataset out, or --unseen"
            )
    if limit is not None:
        by_dataset = {dataset: _spread(of_dataset, limit) for dataset, of_dataset in by_dataset.items()}
    objects = object_labels(read_objects(folder, split)) if task == "captioning" else {}
    return Selection(folder, task, f"unseen {split}" if unseen else split, limit, by_dataset, train, objects)


def _spread(records: list[Any], limit: int) -> list[Any]:
    count = min(limit, len(records))
    return [records[index * len(records) // count] for index in range(count)]


def _check_images(records: Sequence[Record], train: Sequence[Record], folder: Path) -> None:
    keys = Counter((record.dataset, key_of(record, folder)) for record in records)
    (dataset, (image, question)), number = keys.most_common(1)[0]
    if number > 1:
        what = f'question "{question}" of image "{image}" stands' if question else f'image "{image}" stands'
        raise RSMoEError(f"{what} {number} times in this split of {dataset}; merge the lines or drop all but one")
    trained = {(record.dataset, record.image) for record in train}
    in_both = [record for record in records if (record.dataset, record.image) in trained]
    if in_both:
        raise RSMoEError(
            f'image "{key_of(in_both[0], folder)[0]}" of {in_both[0].dataset} stands in split "{in_both[0].split}" '
            f'and in "{TRAIN}" ({len(in_both)} such lines): scores would say nothing; keep it in one split'
        )


# ---- predictions


def predictions_by_model(
    selection: Selection,
    model: str,
    file: Path,
    system: str = "full",
    sees_image: bool = True,
    in_detail: bool = False,
    settings: "GenerationSettings | None" = None,
    dtype: str = "float32",
    batch_size: int = 16,
    progress: Progress = no_progress,
) -> Predictions:
    """Predictions of a checkpoint, which is loaded only if the file lacks one.

    Args:
        selection: the records.
        model: a checkpoint's folder or name.
        file: JSONL that predictions are written to as they come; a later run continues it.
        system: as of `inference.Predictor`.
        sees_image: whether it is given the images, or else a gray one.
        in_detail: whether captions are paragraphs.
        settings: of the generation; by default the checkpoint's.
        dtype: of the weights. In float32 predictions do not depend on the batch size.
        batch_size: images, or questions, in one batch.
        progress: says what is being done.

    Raises:
        RSMoEError: no such checkpoint or system; a checkpoint, system or setting other than the file's made the file;
            another process is writing it.
    """
    from ..inference import GenerationSettings, Predictor
    from ..inference.checkpoint import find_checkpoint, load
    from ..inference.resume import KeyedLog
    from ..utils.quiet import quiet_libraries

    settings = settings or GenerationSettings()
    folder = find_checkpoint(model, progress)
    progress(f"hashing {model}")
    records = selection.all()
    name = system if sees_image else f"{system}{NO_IMAGE}"
    used = generation_settings(folder, system, instruction_of(records[0], in_detail), settings) | {"dtype": dtype}
    logged = {"checkpoint": folder_sha256(folder), "system": name, **used}
    keys, device = [key_of(record, selection.folder) for record in records], "cpu"
    with only_writer(file):
        log = KeyedLog(file, logged, key_of_line)
        if any(key not in log.lines for key in keys):
            checkpoint = load(str(folder), dtype, progress=progress)
            device = str(checkpoint.model.device)
            predictor = Predictor(checkpoint.model, checkpoint.processor, settings, system)
            with quiet_libraries():
                predict(predictor, records, selection.folder, log, batch_size, sees_image, in_detail, progress)
    lines = {key: log.lines[key] for key in keys}
    entry: CheckpointEntry = {"name": Path(model).name, "sha256": weights_sha256(folder)}
    return Predictions(name, lines, entry, used, device)


def generation_settings(folder: Path, system: str, instruction: str, settings: "GenerationSettings") -> dict[str, Any]:
    """The generation settings that a system's texts depend on.

    The fusion `auto` is resolved by the instruction's task, so that a run with `auto` and one with what it comes to
    are the same run [our decision].

    Args:
        folder: of the checkpoint.
        system: as of `inference.Predictor`.
        instruction: one that is predicted with.
        settings: of this run.

    Raises:
        RSMoEError: the checkpoint is damaged.
    """
    from ..generation_rsmoe import DEFAULTS, auto_fusion
    from ..inference.loading import read_json
    from ..prompting_rsmoe import task_of

    is_detail = task_of(instruction) == "detail"
    names = ["num_beams", "max_new_tokens", "do_sample", "repetition_penalty"]
    names += [] if system == "base" else ["router_mode", "router_max_new_tokens"]
    values = read_json(folder / "generation_config.json") | settings.arguments()
    used = {name: values[name] for name in names if name in values}
    if is_detail:
        used["instruction"] = instruction
    if is_detail and settings.max_new_tokens is None:
        used["max_new_tokens"] = values.get("detail_max_new_tokens", DEFAULTS["detail_max_new_tokens"])
    if system.startswith("full"):
        used["fusion"] = values.get("fusion", DEFAULTS["fusion"])
        if used["fusion"] == "auto":
            has_reranker = read_json(folder / "config.json").get("reranker_rank", 0) > 0
            used["fusion"] = auto_fusion(task_of(instruction), has_reranker)
        num_beams = values.get("detail_num_beams")
        if is_detail and used["fusion"] == "sentences" and settings.num_beams is None and num_beams is not None:
            used["num_beams"] = num_beams
    return used


def predictions_by_baseline(selection: Selection, name: str) -> Predictions:
    """What a baseline without a model says to each record.

    Raises:
        RSMoEError: there are no training records, or the task has no such baseline.
    """
    lines: dict[Key, Line] = {}
    for records in selection.records.values():
        for record, text in zip(records, baseline_texts(selection, name, records), strict=True):
            lines[key_of(record, selection.folder)] = {text_field(record): text}
    return Predictions(name, lines)


def baseline_texts(selection: Selection, name: str, records: Sequence[Any]) -> list[str]:
    """What a baseline without a model says to some of the records.

    Raises:
        RSMoEError: there are no training records, or the task has no such baseline.
    """
    if name not in TEXT_BASELINES[selection.task]:
        raise RSMoEError(f'there is no baseline "{name}" for {selection.task}')
    if selection.task == "vqa":
        return {CONSTANT: constant_answers, QUESTION_ONLY: question_only_answers}[name](selection.train, records)
    datasets = {record.dataset for record in records}
    of_datasets = [record for record in selection.train if record.dataset in datasets]
    return [constant_caption(of_datasets or selection.train)] * len(records)


# ---- scores


def evaluate(
    selection: Selection,
    predictions: Mapping[Key, Line],
    progress: Progress = no_progress,
    with_expert_texts: bool = True,
    baselines: Mapping[str, Mapping[Key, Line]] | None = None,
) -> list[Evaluated]:
    """Score the predictions of every dataset; questions of several datasets are pooled in a last result.

    Args:
        selection: the records.
        predictions: lines as of `predict.read_predictions`, at least one for each record.
        progress: says what is being done.
        with_expert_texts: whether the expert texts of captions by the full model are scored as captions too.
        baselines: lines of more baselines, by name, beside those of `TEXT_BASELINES`.

    Raises:
        RSMoEError: a record has no prediction.
    """
    baselines = baselines or {}
    keys = [key_of(record, selection.folder) for record in selection.all()]
    for of_system in (predictions, *baselines.values()):
        if missing := [key for key in keys if key not in of_system]:
            raise RSMoEError(
                f"there is no prediction for {' / '.join(filter(None, missing[0]))} ({len(missing)} of {len(keys)} "
                "are missing); predict them, or score the dataset and split that they were made for"
            )
    groups = dict(selection.records)
    if selection.task == "vqa" and len(groups) > 1:
        groups[ALL_DATASETS] = selection.all()
    evaluated = []
    for dataset, records in groups.items():
        progress(f"scoring {dataset} {selection.split}")
        keys = [key_of(record, selection.folder) for record in records]
        lines = [record_fields(record, selection.folder) | predictions[key] for key, record in zip(keys, records)]
        others = {name: [of_baseline[key] for key in keys] for name, of_baseline in baselines.items()}
        evaluated.append(_evaluate_one(selection, dataset, records, lines, with_expert_texts, others))
    return evaluated


def _evaluate_one(
    selection: Selection,
    dataset: str,
    records: list[Any],
    lines: list[Line],
    with_expert_texts: bool,
    others: Mapping[str, list[Line]],
) -> Evaluated:
    field = text_field(records[0])
    scored = _score(selection, records, [line[field] for line in lines])
    texts_of = {name: [line[field] for line in of_baseline] for name, of_baseline in others.items()}
    if selection.train:
        names = TEXT_BASELINES[selection.task]
        texts_of |= {name: baseline_texts(selection, name, records) for name in names if name not in texts_of}
    baselines = {name: _score(selection, records, texts) for name, texts in texts_of.items()}
    labelled = sum(record.image in selection.objects for record in records)
    if labelled:
        baselines[HUMAN] = _mention_scores(selection, records, [" ".join(record.captions) for record in records])
    of_experts: dict[str, Scored] = {}
    if with_expert_texts and selection.task == "captioning":
        texts = [line.get("expert_texts", {}) for line in lines]
        if all(len(by_expert) > 1 for by_expert in texts):
            of_experts = {
                name: _score(selection, records, [by_expert[name] for by_expert in texts]) for name in texts[0]
            }
    result = make_result(
        records,
        selection.folder,
        scored,
        dataset=dataset,
        split=selection.split,
        limit=selection.limit,
        baselines=baselines,
        expert_texts=of_experts,
        seconds=sum(line["seconds"] for line in lines) if all("seconds" in line for line in lines) else None,
    )
    if selection.task == "captioning" and selection.train:
        result["references_in_train"] = share_in_train(_captions(records), _captions(selection.train))
    if labelled:
        result["labelled_images"] = labelled
    return Evaluated(result, records, lines, scored, baselines)


def differences(
    selection: Selection, ours: Sequence[Evaluated], other_predictions: Mapping[Key, Line]
) -> list[Difference]:
    """Ours minus another system's on each dataset, and on all of them together where there are several.

    Raises:
        RSMoEError: a record has no prediction by the other system.
    """
    theirs = evaluate(selection, other_predictions, with_expert_texts=False)
    return _differences(ours, [of_dataset.scored for of_dataset in theirs])


def baseline_differences(ours: Sequence[Evaluated], name: str) -> list[Difference]:
    """As `differences`, from a baseline that was scored beside ours.

    Args:
        ours: as of `evaluate`.
        name: of the baseline.
    """
    return _differences(ours, [of_dataset.baselines[name] for of_dataset in ours])


def _differences(ours: Sequence[Evaluated], theirs: Sequence[Scored]) -> list[Difference]:
    named = [(our.result["dataset"], our.scored, their) for our, their in zip(ours, theirs, strict=True)]
    pairs = [(dataset, [(our, their)]) for dataset, our, their in named if dataset != ALL_DATASETS]
    if len(pairs) > 1:
        pairs.append((ALL_DATASETS, [pair for _, of_dataset in pairs for pair in of_dataset]))
    return [_difference(dataset, of_dataset) for dataset, of_dataset in pairs]


def _difference(dataset: str, pairs: Sequence[tuple[Scored, Scored]]) -> Difference:
    ours = [scores for our, _ in pairs for scores in our.each]
    theirs = [scores for _, their in pairs for scores in their.each]
    paired = {
        name: paired_difference([scores[name] for scores in ours], [scores[name] for scores in theirs])
        for name in PAIRED
        if name in ours[0]
    }
    if len(pairs) == 1:  # ratios of sums: of several datasets together they are no mean
        ((our, their),) = pairs
        paired |= {
            name: interval(
                our.scores[name].value - their.scores[name].value, our.resampled[name] - their.resampled[name]
            )
            for name in RESAMPLED
            if name in our.resampled and name in their.resampled
        }
    return {"dataset": dataset, "items": len(ours), "scores": score_entries(paired)}


def report_of(
    selection: Selection, predictions: Predictions, evaluated: Sequence[Evaluated], against: Sequence[Against] = ()
) -> Report:
    """The report of an evaluation.

    Args:
        selection: the records.
        predictions: of the system.
        evaluated: as of `evaluate`.
        against: differences from other systems.
    """
    lines = predictions.lines.values()
    return make_report(
        selection.task,
        predictions.system,
        predictions.checkpoint,
        predictions.settings,
        [of_dataset.result for of_dataset in evaluated],
        machine=machine_name(predictions.device),
        seconds=sum(line.get("seconds", 0.0) for line in lines),
        peak_memory_bytes=max(line.get("peak_memory", 0) for line in lines) or peak_memory(),
        against=against,
    )


def scored_items(evaluated: Sequence[Evaluated]) -> list[ScoredItem]:
    """What a page shows, each item once.

    Args:
        evaluated: as of `evaluate`.
    """
    return [
        ScoredItem(line, [record.answer] if isinstance(record, QuestionRecord) else record.captions, scores)
        for of_dataset in evaluated
        if of_dataset.result["dataset"] != ALL_DATASETS
        for record, line, scores in zip(
            of_dataset.records, of_dataset.predictions, of_dataset.scored.each, strict=True
        )
    ]


def _score(selection: Selection, records: list[Any], texts: list[str]) -> Scored:
    if selection.task == "vqa":
        return score_answers(records, texts)
    names = [key_of(record, selection.folder)[0] for record in records]
    references = {name: list(record.captions) for name, record in zip(names, records, strict=True)}
    scored = score_captions(references, dict(zip(names, texts, strict=True)), _captions(selection.train) or None)
    if not any(record.image in selection.objects for record in records):
        return scored
    mentioned = _mention_scores(selection, records, texts)
    return Scored(
        scores=scored.scores | mentioned.scores,
        each=[scores | more for scores, more in zip(scored.each, mentioned.each, strict=True)],
        missing=scored.missing | mentioned.missing,
        notes=scored.notes | mentioned.notes,
        resampled=mentioned.resampled,
    )


def _mention_scores(selection: Selection, records: list[Any], texts: list[str]) -> Scored:
    """Over the images that have object labels; the others have no scores of their own."""
    places = [place for place, record in enumerate(records) if record.image in selection.objects]
    labels = [selection.objects[records[place].image] for place in places]
    scored = score_mentions(labels, [texts[place] for place in places])
    each: list[dict[str, float]] = [{} for _ in records]
    for place, scores in zip(places, scored.each, strict=True):
        each[place] = scores
    return replace(scored, each=each)


def _captions(records: Sequence[Any]) -> list[str]:
    return [caption for record in records for caption in record.captions]
