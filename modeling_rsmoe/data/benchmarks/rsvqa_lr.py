"""RSVQA-LR: 772 Sentinel-2 images of the Netherlands (256 px, 10 m) with 77,232 questions made from OpenStreetMap.

Source: Lobry et al., "RSVQA: Visual Question Answering for Remote Sensing Data", TGRS 2020, arXiv 2003.07333,
https://zenodo.org/records/6344334. Types: ``presence``, ``comp``, ``count``, ``rural_urban``.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from ..records import Entry, QuestionRecord
from .files import Benchmark, Source, entries, question_record, read_json


# Of the fields of the published objects; the others (times, sensors, coordinates) are not kept in memory.
_FIELDS = ("images", "questions", "answers", "id", "active", "img_id", "type", "question", "answers_ids", "answer")


def read_rsvqa(source: Source, splits: Sequence[str], prefix: str, images: Path) -> Iterator[QuestionRecord]:
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


def _read(source: Source, splits: Sequence[str]) -> Iterator[QuestionRecord]:
    return read_rsvqa(source, splits, "LR", source.directory("Images_LR"))


RSVQA_LR = Benchmark(
    key="rsvqa-lr",
    name="RSVQA-LR",
    tasks=("vqa",),
    splits=("train", "val", "test"),
    url="https://zenodo.org/records/6344334",
    read=_read,
)
