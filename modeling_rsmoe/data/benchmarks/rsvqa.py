"""RSVQA: questions about aerial and satellite images, made from OpenStreetMap.

- RSVQA-LR: 772 Sentinel-2 images of the Netherlands (256 px, 10 m) with 77,232 questions of the types ``presence``,
  ``comp``, ``count``, ``rural_urban``. https://zenodo.org/records/6344334
- RSVQA-HR: 10,659 aerial images of the north-east of the USA (512 px, 15 cm) with 1,066,316 questions of the types
  ``presence``, ``comp``, ``count``, ``area``. There are two test sets: ``test`` lies where training and validation do,
  ``test_phili`` is Philadelphia and another sensor. https://zenodo.org/records/6344367

Source: Lobry et al., "RSVQA: Visual Question Answering for Remote Sensing Data", TGRS 2020, arXiv 2003.07333.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from ..records import Entry, QuestionRecord
from .files import Benchmark, Source, entries, question_record, read_json


# Of the fields of the published objects; the others (times, sensors, coordinates) are not kept in memory.
_FIELDS = ("images", "questions", "answers", "id", "active", "img_id", "type", "question", "answers_ids", "answer")


def _read(source: Source, splits: Sequence[str], prefix: str, images: Path) -> Iterator[QuestionRecord]:
    """The questions of the RSVQA layout: ``PREFIX_split_SPLIT_{images,questions,answers}.json``.

    A split's files list everything; what belongs to the split is ``active``. As in the authors' own loader, the
    questions of active images are read, each with the first of its answers.
    """
    for split in splits:
        kinds = {
            kind: source.file(f"{prefix}_split_{split}_{kind}.json") for kind in ("images", "questions", "answers")
        }
        active = {_number(entry, "id") for entry in _active(kinds["images"], "images", images)}
        answers = {
            _number(entry, "id"): entry.text("answer") for entry in _active(kinds["answers"], "answers", images)
        }
        for entry in _active(kinds["questions"], "questions", images):
            image_id = _number(entry, "img_id")
            if image_id not in active:
                continue
            ids = entry.field("answers_ids")
            answer = answers.get(ids[0]) if isinstance(ids, list) and ids and isinstance(ids[0], int) else None
            if answer is None:
                raise entry.error(f'"answers_ids" is {ids!r}, but {kinds["answers"].name} has no such active answer')
            answered = Entry(entry.where, images, {**entry.values, "answer": answer})
            image = (images / f"{image_id}.tif").absolute()
            yield question_record(answered, image, source.benchmark.name, split, ("question", "type", "answer"))


def _active(file: Path, key: str, images: Path) -> Iterator[Entry]:
    return (entry for entry in entries(file, read_json(file, _FIELDS), images, key) if entry.field("active"))


def _number(entry: Entry, key: str) -> int:
    value = entry.field(key)
    if not isinstance(value, int):
        raise entry.error(f'"{key}" is {value!r}, expected a whole number')
    return value


def _read_lr(source: Source, splits: Sequence[str]) -> Iterator[QuestionRecord]:
    return _read(source, splits, "LR", source.directory("Images_LR"))


def _read_hr(source: Source, splits: Sequence[str]) -> Iterator[QuestionRecord]:
    return _read(source, splits, "USGS", source.directory("Data"))


LR_URL, HR_URL = "https://zenodo.org/records/6344334", "https://zenodo.org/records/6344367"
SPLITS = ("train", "val", "test")
RSVQA_LR = Benchmark("rsvqa-lr", "RSVQA-LR", ("vqa",), SPLITS, LR_URL, _read_lr)
RSVQA_HR = Benchmark("rsvqa-hr", "RSVQA-HR", ("vqa",), (*SPLITS, "test_phili"), HR_URL, _read_hr)
