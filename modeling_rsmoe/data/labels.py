"""Labels of images in a data folder: ``objects.jsonl`` (which objects are there) and ``scenes.jsonl`` (one scene).

They teach the image encoder (``rsmoe train encoder``), and questions are made of them (``label_questions``).
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from .records import Entry, is_text, json_lines


OBJECTS_FILE, SCENES_FILE = "objects.jsonl", "scenes.jsonl"

L = TypeVar("L", "ObjectRecord", "SceneRecord")


@dataclass(frozen=True)
class ObjectRecord:
    """One image and its objects, as people labelled them. An object in neither list is not known."""

    image: Path  # absolute
    dataset: str
    split: str
    present: tuple[str, ...]
    absent: tuple[str, ...]


@dataclass(frozen=True)
class SceneRecord:
    """One image and the name of its scene, as published."""

    image: Path  # absolute
    dataset: str
    split: str
    scene: str


def read_objects(folder: str | Path, split: str | None = None) -> list[ObjectRecord]:
    """Read ``folder/objects.jsonl``: ``image, dataset, split, present, absent``, one object a line.

    Args:
        folder: the data folder; image paths are relative to it and may not leave it.
        split: keep only this split; all of them by default.

    Returns:
        The records in file order; none where there is no such file.

    Raises:
        RSMoEError: a line that is no such object, or an image that is missing.
    """
    return _read(Path(folder), OBJECTS_FILE, _object_record, split)


def read_scenes(folder: str | Path, split: str | None = None) -> list[SceneRecord]:
    """Read ``folder/scenes.jsonl``: ``image, dataset, split, scene``; otherwise as :func:`read_objects`."""
    return _read(Path(folder), SCENES_FILE, _scene_record, split)


def _read(folder: Path, name: str, record_of: Callable[[Entry], L], split: str | None) -> list[L]:
    records: list[L] = []
    if not (folder / name).exists():
        return records
    for line in json_lines(folder / name, folder):
        record = record_of(line)
        if split in (None, record.split):
            line.check_image(record.image)
            records.append(record)
    return records


def _object_record(line: Entry) -> ObjectRecord:
    present, absent = _names(line, "present"), _names(line, "absent")
    if both := set(present) & set(absent):
        raise line.error(f'"{sorted(both)[0]}" is both present and absent; keep it in one list')
    return ObjectRecord(line.path("image"), line.text("dataset"), line.text("split"), present, absent)


def _scene_record(line: Entry) -> SceneRecord:
    return SceneRecord(line.path("image"), *(line.text(key) for key in ("dataset", "split", "scene")))


def _names(line: Entry, key: str) -> tuple[str, ...]:
    value = line.field(key)
    if not isinstance(value, list) or not all(map(is_text, value)):
        raise line.error(f'"{key}" is {value!r}, expected a list of names; it may be empty')
    return tuple(value)
