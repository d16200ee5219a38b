"""What the readers of the public benchmarks share: a benchmark's description, and reading its published files.

A reader yields plain records (``data.records``) whose images are absolute paths in the folder where the user keeps the
published files. Texts keep their spelling errors and their " ." endings; only runs of white space are made one space.
Everything in a published file is untrusted: paths may not leave the folder, and each object of another shape than
expected is an error that names the file, the record and the field.
"""

import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ...errors_rsmoe import RSMoEError
from ...utils.files import check_input
from ..folder import Record
from ..records import QUESTIONS_FILE, CaptionRecord, Entry, QuestionRecord


Task = Literal["captioning", "vqa"]


@dataclass(frozen=True)
class Source:
    """The folder where a user keeps a benchmark's published files."""

    folder: Path
    benchmark: "Benchmark"

    def file(self, *names: str) -> Path:
        """The first of these files that is there; the names are the places where people keep it."""
        return self._first(names, Path.is_file, "file")

    def directory(self, *names: str) -> Path:
        """The first of these folders that is there."""
        return self._first(names, Path.is_dir, "folder")

    def _first(self, names: tuple[str, ...], is_there: Callable[[Path], bool], kind: str) -> Path:
        for name in names:
            if is_there(self.folder / name):
                return self.folder / name
        other = f" (nor {', '.join(names[1:])})" if names[1:] else ""
        raise RSMoEError(f"the {kind} {self.folder / names[0]} is missing{other}; {self.benchmark.remedy}")


@dataclass(frozen=True)
class Benchmark:
    """A public dataset: what it has, where it is published, and the reader of its own files."""

    key: str  # on the command line
    name: str  # in records and of its image folder
    tasks: tuple[Task, ...]
    splits: tuple[str, ...]  # official ones, or ours where docs/how-to/datasets.md says so
    url: str
    read: Callable[[Source, Sequence[str]], Iterator[Record]]  # of the chosen splits
    questions_file: str = QUESTIONS_FILE  # of a data folder

    @property
    def remedy(self) -> str:
        """What to do about missing files."""
        return f"{self.name} is published at {self.url}, docs/how-to/datasets.md shows how to lay out its files"

    def records(self, folder: str | Path, splits: Collection[str] | None = None) -> Iterator[Record]:
        """The records in the published files; images need not be there.

        Args:
            folder: with the published files.
            splits: by default all.

        Raises:
            RSMoEError: an unknown split, a missing file, or one that is not as published.
        """
        chosen = self.splits if splits is None else tuple(dict.fromkeys(splits))
        for split in chosen:
            if split not in self.splits:
                raise RSMoEError(f'{self.name} has no split "{split}"; known: {", ".join(self.splits)}')
        path = Path(folder)
        if not path.is_dir():
            raise RSMoEError(
                f"{path} does not exist or is not a folder; give the folder with the published files of {self.name} "
                f"({self.url})"
            )
        count = 0
        for record in self.read(Source(path, self), chosen):
            count += 1
            yield record
        if not count:
            raise RSMoEError(f"no records of {self.name} in {path} for the splits {', '.join(chosen)}")


def tidy(text: str) -> str:
    """The text with each run of white space made one space."""
    return " ".join(text.split())


def read_json(file: Path, fields: Collection[str] | None = None) -> Any:
    """The content of a JSON file; of its objects keep only ``fields``, so that a million of them fit into memory."""

    def reduce(values: dict[str, Any]) -> dict[str, Any]:
        return values if fields is None else {key: value for key, value in values.items() if key in fields}

    check_input(file, "a published file")
    try:
        with file.open(encoding="utf-8-sig") as stream:
            return json.load(stream, object_hook=reduce)
    except ValueError as error:  # UnicodeDecodeError and JSONDecodeError are both ValueErrors
        raise RSMoEError(f"{file} is not UTF-8 JSON ({error}); download it again") from None
    except RecursionError:
        raise RSMoEError(f"{file} is not as published: it is nested too deep; download it again") from None


def entries(file: Path, content: Any, images: Path, key: str = "") -> Iterator[Entry]:
    """The objects of a list in a JSON file.

    Args:
        file: named in errors.
        content: of the file.
        images: the folder of their images.
        key: of the list in an object; without it, the content is the list.

    Raises:
        RSMoEError: there is no such list, or one of its items is no object.
    """
    if key:
        if not isinstance(content, dict) or key not in content:
            raise RSMoEError(f'{file}: expected an object with the list "{key}"; is it the published file?')
        content = content[key]
    return _objects(f"{file}: {key}", content, images)


def children(entry: Entry, key: str) -> Iterator[Entry]:
    """The objects of a list in a field of an entry, which name it in their errors."""
    return _objects(f"{entry.where}.{key}", entry.field(key), entry.folder)


def _objects(where: str, content: Any, images: Path) -> Iterator[Entry]:
    if not isinstance(content, list):
        raise RSMoEError(f"{where}: {type(content).__name__} found, expected a list; is it the published file?")
    for number, values in enumerate(content):
        if not isinstance(values, dict):
            kind = type(values).__name__
            raise RSMoEError(f"{where}[{number}]: {kind} found, expected an object; is it the published file?")
        yield Entry(f"{where}[{number}]", images, values)


def split_of(entry: Entry, known: Sequence[str]) -> str:
    """The entry's ``split``, one of the benchmark's."""
    split = entry.text("split")
    if split not in known:
        raise entry.error(f'"split" is "{split}", expected one of {", ".join(known)}')
    return split


def hash_split(name: str) -> str:
    """The split of an image without an official one: the same on every machine, 80 / 10 / 10 %."""
    place = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4]) % 10
    return "train" if place < 8 else "val" if place == 8 else "test"


def caption_record(entry: Entry, image: Path, dataset: str, split: str, captions: list[str]) -> CaptionRecord:
    """A record of the captions, without empty ones: one bad sentence should not cost the whole dataset.

    Raises:
        RSMoEError: none is left.
    """
    texts = tuple(filter(None, map(tidy, captions)))
    if not texts:
        raise entry.error("it has no caption that is not empty")
    return CaptionRecord(image, dataset, split, texts)


def question_record(entry: Entry, image: Path, dataset: str, split: str, keys: Sequence[str]) -> QuestionRecord:
    """A record whose question, type and answer are in these fields of the entry."""
    question, question_type, answer = (tidy(entry.text(key)) for key in keys)
    return QuestionRecord(image, dataset, split, question, question_type, answer)


def raw(entry: Entry, key: str = "raw") -> str:
    """A text that may be empty.

    Raises:
        RSMoEError: it is missing or no string.
    """
    value = entry.field(key)
    if not isinstance(value, str):
        raise entry.error(f'"{key}" is {value!r}, expected a string')
    return value
