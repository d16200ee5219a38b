"""The images of an archive: those of a folder, of a list, or named one by one. Knows nothing about models."""

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from ..errors_rsmoe import RSMoEError


SUFFIXES = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".bmp", ".gif", ".jp2", ".ppm", ".pgm"}
LISTS = {".txt", ".jsonl"}
_LOOKED_UP = 100  # entries of a list: if none of their files exists, the list is read from a wrong place


class Item(NamedTuple):
    """One image.

    Attributes:
        name: what rows call it: its path within the folder, or as it stands in the list.
        path: what is read: an absolute path, or a URL.
    """

    name: str
    path: str


def is_archive(where: str) -> bool:
    """Whether `where` is a folder or a list of images rather than one image."""
    return os.path.isdir(where) or (Path(where).suffix.lower() in LISTS and not is_url(where))


def find_items(where: Sequence[str]) -> list[Item]:
    """The images, in the order that their rows will have.

    Args:
        where: one folder (all images in it and below, by their names; what is hidden is left out); one list: `.txt`, a
            path or URL on each line, or `.jsonl`, each line an object with `image`, relative paths being relative to
            the list's folder; or images and URLs.

    Raises:
        RSMoEError: there are no images, or a line of a list is none.
    """
    several = [name for name in where if is_archive(name)]
    if several and len(where) > 1:
        raise RSMoEError(f"{several[0]} stands beside other images: give one folder, one list, or images alone")
    if not several:
        return [Item(name, name if is_url(name) else os.path.abspath(name)) for name in where]
    source = Path(where[0])
    items = _of_folder(source) if source.is_dir() else _of_list(source)
    if not items:
        looked = f"ending in {', '.join(sorted(SUFFIXES))}" if source.is_dir() else "on any line"
        raise RSMoEError(f"{source} holds no images ({looked}): give a folder or a list that does")
    return items


def _of_folder(folder: Path) -> list[Item]:
    root = folder.absolute()
    return [Item(path.relative_to(root).as_posix(), str(path)) for path in sorted(_walk(root))]


def _walk(folder: Path) -> Iterator[Path]:
    def refuse(error: OSError) -> None:  # left alone, os.walk would skip the folder and its images
        raise RSMoEError(f"{error.filename} cannot be read ({error.strerror}): check its permissions") from error

    for where, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if os.path.splitext(name)[1].lower() in SUFFIXES and not name.startswith("."):
                yield Path(where, name)


def _of_list(file: Path) -> list[Item]:
    try:
        lines = file.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError as error:
        raise RSMoEError(f"the list {file} cannot be read ({error.strerror}): check its name") from error
    in_json = file.suffix.lower() == ".jsonl"
    items = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            name = _named_in(line, file, number) if in_json else line.strip()
            items.append(Item(name, name if is_url(name) else os.path.join(file.absolute().parent, name)))
    local = [item for item in items if not is_url(item.path)][:_LOOKED_UP]
    if local and len(local) == len(items[:_LOOKED_UP]) and not any(os.path.exists(item.path) for item in local):
        raise RSMoEError(
            f"none of the first {len(local)} files of {file} exists, such as {local[0].path}: relative paths are relative "
            "to the list's folder"
        )
    return items


def _named_in(line: str, file: Path, number: int) -> str:
    try:
        name = json.loads(line)["image"]
    except (ValueError, KeyError, TypeError, IndexError):
        name = None
    if not isinstance(name, str) or not name:
        raise RSMoEError(f'{file}:{number}: no image; a line is a JSON object such as {{"image": "tiles/a.png"}}')
    return name


def is_url(name: str) -> bool:
    return name.startswith(("http://", "https://"))
