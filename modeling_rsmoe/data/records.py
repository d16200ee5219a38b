"""Readers of one data folder: ``captions.jsonl`` and ``vqa.jsonl`` with image paths relative to the folder.

What flows out are plain records with absolute image paths. Nothing is decoded and nothing is normalised here: captions
are the raw published text, which is what scores are computed against (``text.py`` cleans what a model learns to
write).
"""

import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, TypeVar

from ..errors_rsmoe import RSMoEError


CAPTIONS_FILE = "captions.jsonl"
QUESTIONS_FILE = "vqa.jsonl"

R = TypeVar("R", "CaptionRecord", "QuestionRecord")


@dataclass(frozen=True)
class CaptionRecord:
    """One image and its reference captions, as published (duplicates included)."""

    image: Path  # absolute
    dataset: str
    split: str
    captions: tuple[str, ...]  # at least one


@dataclass(frozen=True)
class QuestionRecord:
    """One question about one image and its answer, as published."""

    image: Path  # absolute
    dataset: str
    split: str
    question: str
    question_type: str
    answer: str


def read_captions(
    folder: str | Path, split: str | None = None, datasets: Collection[str] | None = None
) -> list[CaptionRecord]:
    """Read ``folder/captions.jsonl``: one JSON object a line with ``image, dataset, split, captions``.

    Args:
        folder: the data folder; image paths are relative to it and may not leave it.
        split: keep only this split, for example ``"train"``; all of them by default.
        datasets: keep only these datasets, for example ``["RSICD"]``; all of them by default.

    Returns:
        The records in file order.

    Raises:
        RSMoEError: for a missing folder, file or image, a line that is not such an object, an image path that is
            absolute or leaves the folder, or a split or dataset that the file does not have. Every line is checked;
            image files are looked for among the records kept.
    """
    records = []
    for line in _lines(Path(folder), CAPTIONS_FILE):
        captions = line.field("captions")
        if not isinstance(captions, list) or not captions or not all(_is_text(text) for text in captions):
            raise line.error(
                f'"captions" is {captions!r}, expected a list of at least one non-empty string; write each reference '
                "caption as a string"
            )
        records.append((line, CaptionRecord(line.image(), line.text("dataset"), line.text("split"), tuple(captions))))
    return _select(records, Path(folder) / CAPTIONS_FILE, split, datasets)


def read_questions(
    folder: str | Path,
    split: str | None = None,
    datasets: Collection[str] | None = None,
    name: str = QUESTIONS_FILE,
) -> list[QuestionRecord]:
    """Read ``folder/vqa.jsonl``: ``image, dataset, split, question, question_type, answer``, one object a line.

    Args:
        folder, split, datasets: as for :func:`read_captions`.
        name: the file's name inside the folder, for a folder with more than one file of questions.

    Raises:
        RSMoEError: as for :func:`read_captions`.
    """
    records = []
    for line in _lines(Path(folder), name):
        record = QuestionRecord(
            line.image(),
            line.text("dataset"),
            line.text("split"),
            line.text("question"),
            line.text("question_type"),
            line.text("answer"),
        )
        records.append((line, record))
    return _select(records, Path(folder) / name, split, datasets)


@dataclass(frozen=True)
class _Line:
    """One parsed line, which knows where it stands so that errors can say it."""

    file: Path
    number: int
    values: dict[str, Any]

    def error(self, problem: str) -> RSMoEError:
        return RSMoEError(f"{self.file}:{self.number}: {problem}")

    def field(self, key: str) -> Any:
        if key not in self.values:
            raise self.error(f'field "{key}" is missing (found: {", ".join(sorted(self.values)) or "none"}); add it')
        return self.values[key]

    def text(self, key: str) -> str:
        value = self.field(key)
        if not _is_text(value):
            raise self.error(f'"{key}" is {value!r}, expected a non-empty string; write it as a string')
        return value

    def image(self) -> Path:
        name = self.text("image")
        # Checked as text, for both kinds of separators: a link inside the folder may point where its owner likes.
        windows = PureWindowsPath(name)
        if PurePosixPath(name).is_absolute() or windows.is_absolute() or windows.drive or windows.root:
            raise self.error(f'image "{name}" is an absolute path; write it relative to {self.file.parent}')
        if ".." in windows.parts:
            raise self.error(f'image "{name}" leaves the data folder {self.file.parent}; keep images inside it')
        return (self.file.parent / name).absolute()


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _lines(folder: Path, name: str) -> Iterator[_Line]:
    if not folder.is_dir():
        raise RSMoEError(f"data folder {folder} does not exist or is not a folder; give the folder that holds {name}")
    file = folder / name
    if not file.is_file():
        found = ", ".join(sorted(path.name for path in folder.glob("*.jsonl"))) or "none"
        raise RSMoEError(f"{file} is missing (.jsonl files there: {found}); a data folder needs {name}")
    with file.open("rb") as stream:
        for number, raw in enumerate(stream, start=1):
            if not raw.strip():
                continue
            try:
                values = json.loads(raw.decode("utf-8"))
            except ValueError as error:  # UnicodeDecodeError and JSONDecodeError are both ValueErrors
                raise RSMoEError(f"{file}:{number}: not a line of UTF-8 JSON ({error}); correct the line") from None
            if not isinstance(values, dict):
                raise RSMoEError(f"{file}:{number}: {type(values).__name__} found, expected one JSON object a line")
            yield _Line(file, number, values)


def _select(
    records: list[tuple[_Line, R]], file: Path, split: str | None, datasets: Collection[str] | None
) -> list[R]:
    if not records:
        raise RSMoEError(f"{file} holds no records; give a file with at least one line")
    kept = records
    if datasets is not None:
        names = [datasets] if isinstance(datasets, str) else list(datasets)
        _check_known("dataset", names, {record.dataset for _, record in records}, file)
        kept = [(line, record) for line, record in kept if record.dataset in names]
    if split is not None:
        _check_known("split", [split], {record.split for _, record in kept}, file)
        kept = [(line, record) for line, record in kept if record.split == split]
    for line, record in kept:
        if not record.image.is_file():
            raise line.error(f"image {record.image} is missing; copy it there or drop the line")
    return [record for _, record in kept]


def _check_known(what: str, asked: list[str], known: set[str], file: Path) -> None:
    for name in asked:
        if name not in known:
            raise RSMoEError(f'unknown {what} "{name}" in {file}; known: {", ".join(sorted(known))}')
