"""Readers of one data folder: ``captions.jsonl`` and ``vqa.jsonl`` with image paths relative to the folder.

A folder without them may be an ImageFolder of Hugging Face datasets: images with a ``metadata.jsonl`` beside them, or
one in each of the subfolders ``train``, ``val`` and ``test``. Its lines hold ``file_name`` (relative to the metadata
file) and ``caption``, ``text`` or ``captions``, or ``question``, ``answer`` and perhaps ``question_type``; ``dataset``
is the folder's name and ``split`` is the subfolder's, else ``test``, unless a line says otherwise.

What flows out are plain records with absolute image paths. Nothing is decoded and nothing is normalised here: captions
are the raw published text, which is what scores are computed against (``cleaning`` cleans what a model learns).
"""

import json
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, TypeVar

from ..errors_rsmoe import RSMoEError
from ..utils.files import check_input, parse_json, sha256_of
from ..utils.provenance import sha256_of_lines


CAPTIONS_FILE = "captions.jsonl"
QUESTIONS_FILE = "vqa.jsonl"
METADATA_FILE = "metadata.jsonl"
# The split that a subfolder of an ImageFolder stands for, under the names that Hugging Face datasets knows.
SPLIT_FOLDERS = dict.fromkeys(("train", "training"), "train")
SPLIT_FOLDERS |= dict.fromkeys(("val", "valid", "validation", "dev"), "val")
SPLIT_FOLDERS |= dict.fromkeys(("test", "testing", "eval", "evaluation"), "test")

R = TypeVar("R", "CaptionRecord", "QuestionRecord")


@dataclass(frozen=True)
class CaptionRecord:
    """One image and its reference captions, as published (duplicates included)."""

    image: Path  # absolute
    dataset: str
    split: str
    captions: tuple[str, ...]  # at least one
    # The sentences of each expert by its name, where the data have their own split; `data.aspects` makes one else.
    aspects: Mapping[str, tuple[str, ...]] | None = field(default=None, hash=False)


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

    A line may carry a split of its own into what the experts learn: ``"aspects": {"theme": ["..."], "object": [..]}``.

    Args:
        folder: the data folder; image paths are relative to it and may not leave it.
        split: keep only this split, for example ``"train"``; all of them by default.
        datasets: keep only these datasets, for example ``["RSICD"]``; all of them by default.

    Returns:
        The records in file order.

    Raises:
        RSMoEError: for a missing folder, file or image, a line that is not such an object, an image path that is
            absolute or leaves the folder, or a split or dataset that the file does not have. Every line is checked,
            but only the images of selected records.
    """
    return _read(Path(folder), CAPTIONS_FILE, _caption_record, split, datasets)


def read_questions(
    folder: str | Path, split: str | None = None, datasets: Collection[str] | None = None, name: str = QUESTIONS_FILE
) -> list[QuestionRecord]:
    """Read ``folder/vqa.jsonl``: ``image, dataset, split, question, question_type, answer``, one object a line.

    Args:
        folder: the data folder.
        split: keep only this split; all of them by default.
        datasets: keep only these datasets; all of them by default.
        name: the file's name inside the folder, for a folder with more than one file of questions.

    Raises:
        RSMoEError: as for :func:`read_captions`.
    """
    return _read(Path(folder), name, _question_record, split, datasets)


def has_questions(folder: str | Path) -> bool:
    """Whether a data folder, or an ImageFolder, holds questions."""
    if (Path(folder) / QUESTIONS_FILE).is_file():
        return True
    return not (Path(folder) / CAPTIONS_FILE).is_file() and any(
        _is_of(line, QUESTIONS_FILE) for line in _metadata_entries(Path(folder))
    )


def records_sha256(records: Sequence[CaptionRecord | QuestionRecord], folder: str | Path) -> str:
    """A hash of records: their texts and image names and the bytes of the images, whatever their order.

    Two results with the same hash saw the same images and texts.

    Args:
        records: captions, questions or both.
        folder: their data folder; image names are relative to it.
    """
    root = Path(folder).absolute()
    images = {record.image: sha256_of(record.image) for record in records}
    lines = []
    for record in records:
        texts = {name: value for name, value in asdict(record).items() if name != "image" and value is not None}
        name = record.image.relative_to(root).as_posix()
        lines.append(json.dumps([name, images[record.image], texts], ensure_ascii=False, sort_keys=True))
    return sha256_of_lines(sorted(lines))


@dataclass(frozen=True)
class Entry:
    """One JSON object of a file, with its place for errors."""

    where: str  # file and place in it
    folder: Path  # to which its paths are relative
    values: dict[str, Any]

    def error(self, problem: str) -> RSMoEError:
        return RSMoEError(f"{self.where}: {problem}")

    def field(self, key: str) -> Any:
        if key not in self.values:
            raise self.error(f'field "{key}" is missing (found: {", ".join(sorted(self.values)) or "none"}); add it')
        return self.values[key]

    def text(self, key: str) -> str:
        value = self.field(key)
        if not is_text(value):
            raise self.error(f'"{key}" is {value!r}, expected a non-empty string; write it as a string')
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        value = self.field(key)
        if not isinstance(value, list) or not value or not all(is_text(text) for text in value):
            raise self.error(
                f'"{key}" is {value!r}, expected a list of at least one non-empty string; write each one as a string'
            )
        return tuple(value)

    def aspects(self) -> dict[str, tuple[str, ...]] | None:
        """The field ``aspects``: lists of sentences by expert; an empty list is an expert with nothing to learn."""
        value = self.values.get("aspects")
        if value is None:
            return None
        wanted = 'expected {"theme": ["A sentence."], ...}, a list of non-empty strings for each expert'
        if not isinstance(value, dict) or not any(value.values()):
            raise self.error(f'"aspects" is {value!r}, {wanted}; leave the field out to have the captions split')
        for name, sentences in value.items():
            if not isinstance(sentences, list) or not all(is_text(text) for text in sentences):
                raise self.error(f'"aspects" has {sentences!r} for {name!r}, {wanted}')
        return {name: tuple(sentences) for name, sentences in value.items()}

    def path(self, key: str) -> Path:
        """The absolute path of a file inside the folder."""
        name = self.text(key)
        # Checked as text, for both kinds of separators: a link inside the folder may point where its owner likes.
        windows = PureWindowsPath(name)
        if PurePosixPath(name).is_absolute() or windows.is_absolute() or windows.drive or windows.root:
            raise self.error(f'{key} "{name}" is an absolute path; write it relative to {self.folder}')
        if ".." in windows.parts:
            raise self.error(f'{key} "{name}" leaves the data folder {self.folder}; keep images inside it')
        return (self.folder / name).absolute()

    def check_image(self, image: Path) -> None:
        """Raises RSMoEError where the image of this entry is missing."""
        if not os.path.isfile(image):  # no error for a name that is too long
            raise self.error(f"image {image} is missing; copy it there or drop the line")


def is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _caption_record(line: Entry) -> CaptionRecord:
    captions, aspects = line.texts("captions"), line.aspects()
    return CaptionRecord(line.path("image"), line.text("dataset"), line.text("split"), captions, aspects)


def _question_record(line: Entry) -> QuestionRecord:
    texts = [line.text(key) for key in ("dataset", "split", "question", "question_type", "answer")]
    return QuestionRecord(line.path("image"), *texts)


def _read(
    folder: Path, name: str, record_of: Callable[[Entry], R], split: str | None, datasets: Collection[str] | None
) -> list[R]:
    """The selected records of a file in a data folder, or of an ImageFolder if it is one."""
    if not folder.is_dir():
        raise RSMoEError(f"data folder {folder} does not exist or is not a folder; give the folder that holds {name}")
    file = folder / name
    if file.is_file():
        lines = json_lines(file, folder)
    elif _metadata_files(folder):
        file = folder / METADATA_FILE
        other = QUESTIONS_FILE if name == CAPTIONS_FILE else CAPTIONS_FILE
        lines = (line for line in _metadata_entries(folder) if _is_of(line, name) or not _is_of(line, other))
    else:
        present = ", ".join(sorted(path.name for path in folder.glob("*.jsonl"))) or "none"
        raise RSMoEError(
            f"{file} is missing (.jsonl files there: {present}); a data folder needs {name}, "
            f"or {METADATA_FILE} if it is an ImageFolder"
        )
    records = [(line, record_of(line)) for line in lines]
    if not records:
        raise RSMoEError(f"{file} holds no records; give a file with at least one line")
    if datasets is not None:
        _check_known("dataset", datasets, {record.dataset for _, record in records}, file)
        records = [(line, record) for line, record in records if record.dataset in datasets]
    if split is not None:
        _check_known("split", [split], {record.split for _, record in records}, file)
        records = [(line, record) for line, record in records if record.split == split]
    for line, record in records:
        line.check_image(record.image)
    return [record for _, record in records]


def _metadata_entries(folder: Path) -> Iterator[Entry]:
    for file, split in _metadata_files(folder).items():
        for line in json_lines(file, file.parent):
            yield replace(line, values=_of_image_folder(line, folder.resolve().name, split))


def _is_of(line: Entry, name: str) -> bool:
    """Whether a line of an ImageFolder belongs into the file of that name."""
    return ("captions" if name == CAPTIONS_FILE else "question") in line.values


def _metadata_files(folder: Path) -> dict[Path, str]:
    """The metadata files of an ImageFolder and the split that each stands for; empty if it is none."""
    if (folder / METADATA_FILE).is_file():
        return {folder / METADATA_FILE: "test"}
    files = {file: SPLIT_FOLDERS.get(file.parent.name, "") for file in sorted(folder.glob(f"*/{METADATA_FILE}"))}
    return {file: split for file, split in files.items() if split}


def _of_image_folder(line: Entry, dataset: str, split: str) -> dict[str, Any]:
    file_name = line.text("file_name")
    top = PurePosixPath(file_name).parts[0]
    values = {"dataset": dataset, "split": SPLIT_FOLDERS.get(top, split), "question_type": "other", **line.values}
    values["image"] = file_name
    for key in ("caption", "text"):
        if "captions" not in values and key in values:
            values["captions"] = [values[key]]
    return values


def json_lines(file: Path, folder: Path) -> Iterator[Entry]:
    """The JSON objects of a JSONL file.

    Raises:
        RSMoEError: the file cannot be read, or a line is no JSON object.
    """
    check_input(file, "a JSONL file")
    lines = file.read_bytes().split(b"\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            values = parse_json(line)
        except ValueError as error:  # UnicodeDecodeError and JSONDecodeError are both ValueErrors
            raise RSMoEError(f"{file}:{number}: not a line of UTF-8 JSON ({error}); correct the line") from None
        if not isinstance(values, dict):
            raise RSMoEError(f"{file}:{number}: {type(values).__name__} found, expected one JSON object a line")
        yield Entry(f"{file}:{number}", folder, values)


def _check_known(what: str, names: Collection[str], known: set[str], file: Path) -> None:
    for name in names:
        if name not in known:
            raise RSMoEError(f'unknown {what} "{name}" in {file}; known: {", ".join(sorted(known))}')
