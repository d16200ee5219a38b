"""RSVQA-HR: 10,659 aerial images of the north-east of the USA (512 px, 15 cm) with 1,066,316 questions.

Source: Lobry et al., "RSVQA: Visual Question Answering for Remote Sensing Data", TGRS 2020, arXiv 2003.07333,
https://zenodo.org/records/6344367. Types: ``presence``, ``comp``, ``count``, ``area``. There are two test sets:
``test`` lies where training and validation do, ``test_phili`` is Philadelphia and another sensor.
"""

from collections.abc import Iterator, Sequence

from ..records import QuestionRecord
from .files import Benchmark, Source
from .rsvqa_lr import read_rsvqa


def _read(source: Source, splits: Sequence[str]) -> Iterator[QuestionRecord]:
    return read_rsvqa(source, splits, "USGS", source.directory("Data"))


RSVQA_HR = Benchmark(
    key="rsvqa-hr",
    name="RSVQA-HR",
    tasks=("vqa",),
    splits=("train", "val", "test", "test_phili"),
    url="https://zenodo.org/records/6344367",
    read=_read,
)
