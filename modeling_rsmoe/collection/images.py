"""The images of a collection: those of a folder, of a list, or named one by one. Knows nothing about models."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from ..errors_rsmoe import RSMoEError
from ..utils.files import check_input, parse_json


IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".bmp", ".gif", ".jp2", ".ppm", ".pgm"}
LIST_SUFFIXES = {".txt", ".jsonl"}
_NUM_CHECKED = 100  # entries of a list: if none of their files exists, its paths are relative to another folder


class CollectionImage(NamedTuple):
    """An image: the name of its row (its path in the folder, or as the list has it); its absolute path, or URL."""

    name: str
    path: str


def is_collection(source: str) -> bool:
    """Whether `source` is a folder or a list of images rather than one image."""
    return os.path.isdir(source) or (Path(source).suffix.lower() in LIST_SUFFIXES and not is_url(source))


def find_images(sources: Sequence[str]) -> list[CollectionImage]:
    """The images, in the order that their rows will have.

    Args:
        sources: one folder (all images in it and below, in linked folders too, by their names; what is hidden is left
            out); one list: `.txt`,
            a path or URL on each line, or `.jsonl`, each line an object with `image`, relative paths being relative to
            the list's folder; or images and URLs.

    Raises:
        RSMoEError: there are no images, or a line of a list is none.
    """
    collections = [source for source in sources if is_collection(source)]
    if collections and len(sources) > 1:
        raise RSMoEError(f"{collections[0]} stands beside other images: give one folder, one list, or images alone")
    if not collections:
        return [CollectionImage(name, name if is_url(name) else os.path.abspath(name)) for name in sources]
    source = Path(sources[0])
    if source.is_dir():
        root = source.absolute()
        images = [CollectionImage(path.relative_to(root).as_posix(), str(path)) for path in sorted(_walk(root))]
    else:
        images = _in_list(source)
    if not images:
        expected = f"ending in {', '.join(sorted(IMAGE_SUFFIXES))}" if source.is_dir() else "on any line"
        raise RSMoEError(f"{source} holds no images ({expected}): give a folder or a list that does")
    return images


def _walk(folder: Path, above: tuple[str, ...] = ()) -> Iterator[Path]:
    """Links are followed, but not into a folder that holds them (`above`)."""
    above = (*above, os.path.realpath(folder))
    try:
        entries = [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
    except OSError as error:  # passed over, its images would be missing without a word
        raise RSMoEError(f"{error.filename} cannot be read ({error.strerror}): check its permissions") from error
    for entry in entries:
        if entry.is_dir():
            if os.path.realpath(entry) not in above:
                yield from _walk(entry, above)
        elif entry.suffix.lower() in IMAGE_SUFFIXES:
            yield entry


def _in_list(file: Path) -> list[CollectionImage]:
    check_input(file, "a list of images")
    lines = file.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    is_json = file.suffix.lower() == ".jsonl"
    images = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            name = _image_in(line, file, number) if is_json else line.strip()
            images.append(CollectionImage(name, name if is_url(name) else os.path.join(file.absolute().parent, name)))
    checked = [image.path for image in images[:_NUM_CHECKED]]
    if checked and not any(is_url(path) or os.path.exists(path) for path in checked):
        raise RSMoEError(
            f"none of the first {len(checked)} files of {file} exists, such as {checked[0]}: relative paths are "
            "relative to the list's folder"
        )
    return images


def _image_in(line: str, file: Path, number: int) -> str:
    try:
        name = parse_json(line.encode())["image"]
    except (ValueError, KeyError, TypeError, IndexError):
        name = None
    if not isinstance(name, str) or not name:
        raise RSMoEError(f'{file}:{number}: no image; a line is a JSON object such as {{"image": "tiles/a.png"}}')
    return name


def is_url(name: str) -> bool:
    return name.startswith(("http://", "https://"))
