"""One evaluation from the data folder to its results: which records, what their predictions score, beside baselines.

`select` before a model is loaded, `predict.predict` with the model, `evaluate` on what it wrote; `cli/evaluate.py` is
these three in a row.
"""

import functools
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..data.records import QUESTIONS_FILE, QuestionRecord, read_captions, read_questions
from ..errors_rsmoe import RSMoEError
from .baselines import constant_answers, constant_caption, question_only_answers
from .captions import check_installed, score_captions
from .page import Item
from .predict import Key, Record, key_of, named
from .report import ALL_DATASETS, Result, make_result
from .scores import Scored
from .vqa import score_answers


Task = Literal["captioning", "vqa"]
TRAIN = "train"
# Baselines that need no model: the same caption for every image (or answer for every question of a type); the answer
# that training questions of the same words have.
CONSTANT, QUESTION_ONLY = "constant", "question-only"
TEXT_BASELINES: dict[Task, tuple[str, ...]] = {"captioning": (CONSTANT,), "vqa": (CONSTANT, QUESTION_ONLY)}


@dataclass(frozen=True)
class Selection:
    """The records to evaluate, by dataset, and those that baselines learn from."""

    folder: Path
    task: Task
    split: str
    limit: int | None  # of each dataset
    records: dict[str, list[Any]]
    train: list[Any]  # may be empty

    def all(self) -> list[Any]:
        return [record for records in self.records.values() for record in records]


@dataclass(frozen=True)
class Evaluated:
    """One result and what it was made of, item by item."""

    result: Result
    records: Sequence[Record]
    predictions: Sequence[dict[str, Any]]
    scored: Scored


def select(
    folder: Path,
    task: Task,
    split: str,
    datasets: Collection[str] | None = None,
    limit: int | None = None,
    questions_file: str = QUESTIONS_FILE,
) -> Selection:
    """The records of a split, checked.

    Args:
        datasets: their names; all that have the split by default.
        limit: at most so many records of each dataset, evenly spread over the file, which may be sorted by scene.
        questions_file: its name in the folder.

    Raises:
        RSMoEError: as the readers of `data.records`; a dataset without this split; an image that stands twice, or in
            two splits; pycocoevalcap is missing.
    """
    if task == "captioning":
        check_installed()
    read: Callable[..., list[Any]] = (
        read_captions if task == "captioning" else functools.partial(read_questions, name=questions_file)
    )
    records = read(folder, split, datasets)
    for dataset in dict.fromkeys(datasets or ()):
        if not any(record.dataset == dataset for record in records):
            known = sorted({record.split for record in read(folder, None, [dataset])})
            raise RSMoEError(f'dataset "{dataset}" has no split "{split}"; it has {", ".join(known)}')
    chosen: dict[str, list[Any]] = {}
    for record in records:
        chosen.setdefault(record.dataset, []).append(record)
    try:
        train = [] if split == TRAIN else read(folder, TRAIN)
    except RSMoEError:  # no such split: baselines that learn from it are left out
        train = []
    _check_images(records, train, folder)
    if limit is not None:
        chosen = {dataset: _spread(found, limit) for dataset, found in chosen.items()}
    return Selection(folder, task, split, limit, chosen, train)


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
    both = [record for record in records if (record.dataset, record.image) in trained]
    if both:
        raise RSMoEError(
            f'image "{key_of(both[0], folder)[0]}" of {both[0].dataset} stands in split "{both[0].split}" and in '
            f'"{TRAIN}" ({len(both)} such lines): scores would tell nothing; keep it in one split'
        )


def baseline_texts(selection: Selection, name: str, records: Sequence[Any]) -> list[str]:
    """What a baseline without a model says to each record.

    Raises:
        RSMoEError: there are no training records, or the task has no such baseline.
    """
    if name not in TEXT_BASELINES[selection.task]:
        raise RSMoEError(f'there is no baseline "{name}" for {selection.task}')
    if selection.task == "vqa":
        return {CONSTANT: constant_answers, QUESTION_ONLY: question_only_answers}[name](selection.train, records)
    datasets = {record.dataset for record in records}
    own = [record for record in selection.train if record.dataset in datasets]
    return [constant_caption(own or selection.train)] * len(records)


def evaluate(
    selection: Selection,
    predictions: Mapping[Key, dict[str, Any]],
    progress: Callable[[str], None] = lambda message: None,
    with_parts: bool = True,
) -> list[Evaluated]:
    """Score the predictions of every dataset; questions of several datasets are pooled in a last result.

    Args:
        predictions: lines as of `predict.read_predictions`, at least one for each record.
        with_parts: whether the experts' parts of captions by the full model are scored as captions too.

    Raises:
        RSMoEError: a record has no prediction.
    """
    keys = [key_of(record, selection.folder) for record in selection.all()]
    absent = [key for key in keys if key not in predictions]
    if absent:
        raise RSMoEError(
            f"there is no prediction for {' / '.join(filter(None, absent[0]))} ({len(absent)} of {len(keys)} are "
            "missing); predict them, or score the dataset and split that they were made for"
        )
    groups = dict(selection.records)
    if selection.task == "vqa" and len(groups) > 1:
        groups[ALL_DATASETS] = selection.all()
    evaluated = []
    for dataset, records in groups.items():
        progress(f"scoring {dataset} {selection.split}")
        own = [
            {**named(record, selection.folder), **predictions[key_of(record, selection.folder)]} for record in records
        ]
        evaluated.append(_evaluate_one(selection, dataset, records, own, with_parts))
    return evaluated


def _evaluate_one(
    selection: Selection, dataset: str, records: list[Any], lines: list[Any], with_parts: bool
) -> Evaluated:
    spoken = [line["caption"] if selection.task == "captioning" else line["answer"] for line in lines]
    scored = _score(selection, records, spoken)
    baselines = {
        name: _score(selection, records, baseline_texts(selection, name, records))
        for name in TEXT_BASELINES[selection.task]
        if selection.train
    }
    parts = None
    if with_parts and selection.task == "captioning" and all(len(line.get("parts", {})) > 1 for line in lines):
        parts = {
            name: _score(selection, records, [line["parts"][name] for line in lines]) for name in lines[0]["parts"]
        }
    result = make_result(
        records,
        selection.folder,
        scored,
        dataset=dataset,
        split=selection.split,
        limit=selection.limit,
        baselines=baselines,
        parts=parts,
        seconds=sum(line["seconds"] for line in lines) if all("seconds" in line for line in lines) else None,
    )
    return Evaluated(result, records, lines, scored)


def page_items(evaluated: Sequence[Evaluated]) -> list[Item]:
    """What a page shows, each item once."""
    return [
        Item(line, [record.answer] if isinstance(record, QuestionRecord) else record.captions, scores)
        for each in evaluated
        if each.result["dataset"] != ALL_DATASETS
        for record, line, scores in zip(each.records, each.predictions, each.scored.each, strict=True)
    ]


def _score(selection: Selection, records: list[Any], texts: list[str]) -> Scored:
    if selection.task == "vqa":
        return score_answers(records, texts)
    names = [key_of(record, selection.folder)[0] for record in records]
    references = {name: list(record.captions) for name, record in zip(names, records, strict=True)}
    learned = [caption for record in selection.train for caption in record.captions]
    return score_captions(references, dict(zip(names, texts, strict=True)), learned or None)


def run_id(checkpoint: str, system: str, settings: Mapping[str, Any]) -> str:
    """Identifies what a prediction depends on besides its record: the checkpoint's hash, the system, the settings."""
    text = json.dumps([checkpoint, system, dict(settings)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
