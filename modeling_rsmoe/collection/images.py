"""The images of a collection: those of a folder, of a list, or named one by one. Knows nothing about models."""

import hashlib
import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from ..errors_rsmoe import RSMoEError
from ..utils.files import check_input, disk_errors, parse_json, sha256_of
from ..utils.rasters.drivers import is_gdal_path
from ..utils.rasters.options import RasterOptions


if TYPE_CHECKING:
    from PIL import Image

Row = dict[str, Any]
KEY, VERSION = "key", "version"  # columns of shards alone: an item's `key`, and what `has_changed` compares


IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".bmp", ".gif", ".jp2", ".ppm", ".pgm"}
LIST_SUFFIXES = {".txt", ".jsonl"}
_NUM_CHECKED = 100  # entries of a list: if none of their files exists, its paths are relative to another folder


class Item(Protocol):
    """What becomes one row: an image, or a tile of a scene (`tiles`). It is sent to the worker that reads it."""

    @property
    def key(self) -> str:
        """Its own among all items of the collection, in every run."""

    @property
    def path(self) -> str:
        """What its errors call it."""

    def known(self) -> Row:
        """The columns that are known before it is read."""

    def read(self, row: Row, image_side: int, raster_options: RasterOptions) -> "Image.Image | None":
        """The pixels for a model whose images have this side, or None: there is nothing to describe.

        A tile is read as its scene was opened; the options are of images.
        What is learnt of it, `VERSION` too, is put into `row`, also where it cannot be read.

        Raises:
            RSMoEError: it cannot be read; the row gets this as its error.
        """

    def has_changed(self, version: str | None) -> bool:
        """Whether it is another now than when its row was made."""

    def close(self) -> None:
        """Let go of files; a later `read` opens them again."""


class CollectionImage(NamedTuple):
    """An image: the name of its row (its path in the folder, or as the list has it); its absolute path, or URL."""

    name: str
    path: str

    @property
    def key(self) -> str:
        return printable_name(self.name)

    def known(self) -> Row:
        return {"image": self.key}

    def read(self, row: Row, image_side: int, raster_options: RasterOptions) -> "Image.Image":
        from ..utils.images import read_image

        source, sha256 = read_source(self.path)
        row |= {"sha256": sha256, VERSION: sha256}
        with disk_errors("cannot read", "Copy it again."):  # gone meanwhile
            image = read_image(source, self.path, raster_options)
        row |= {"width": image.width, "height": image.height}
        return image

    def has_changed(self, version: str | None) -> bool:
        """URLs are not fetched again, and what cannot be read here (any more) stays as it was [our decision]."""
        if is_url(self.path):
            return False
        try:
            check_input(self.path, "an image")
            return sha256_of(self.path) != version
        except (OSError, RSMoEError):
            return False

    def close(self) -> None:
        """Images are closed when they are read."""


def is_collection(source: str) -> bool:
    """Whether `source` is a folder or a list of images rather than one image."""
    return os.path.isdir(source) or (Path(source).suffix.lower() in LIST_SUFFIXES and not is_url(source))


def find_images(sources: Sequence[str], suffixes: Collection[str] = IMAGE_SUFFIXES) -> list[CollectionImage]:
    """The images, in the order that their rows will have.

    Args:
        sources: one folder (all images in it and below, in linked folders too, by their names; what is hidden is left
            out); one list: `.txt`,
            a path or URL on each line, or `.jsonl`, each line an object with `image`, relative paths being relative to
            the list's folder; or images and URLs.
        suffixes: of the files that are taken of a folder.

    Raises:
        RSMoEError: there are no images, or a line of a list is none.
    """
    collections = [source for source in sources if is_collection(source)]
    if collections and len(sources) > 1:
        raise RSMoEError(f"{collections[0]} stands beside other images: give one folder, one list, or images alone")
    if not collections:
        return [CollectionImage(name, _place(name, Path.cwd())) for name in sources]
    source = Path(sources[0])
    if source.is_dir():
        root = source.absolute()
        images = [
            CollectionImage(path.relative_to(root).as_posix(), str(path)) for path in sorted(_walk(root, suffixes))
        ]
    else:
        images = _in_list(source)
    if not images:
        expected = f"ending in {', '.join(sorted(suffixes))}" if source.is_dir() else "on any line"
        raise RSMoEError(f"{source} holds no images ({expected}): give a folder or a list that does")
    return images


def _walk(folder: Path, suffixes: Collection[str], above: tuple[str, ...] = ()) -> Iterator[Path]:
    """Links are followed, but not into a folder that holds them (`above`)."""
    above = (*above, os.path.realpath(folder))
    try:
        entries = [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
    except OSError as error:  # passed over, its images would be missing without a word
        raise RSMoEError(f"{error.filename} cannot be read ({error.strerror}): check its permissions") from error
    for entry in entries:
        if entry.is_dir():
            if os.path.realpath(entry) not in above:
                yield from _walk(entry, suffixes, above)
        elif entry.suffix.lower() in suffixes:
            yield entry


def _in_list(file: Path) -> list[CollectionImage]:
    check_input(file, "a list of images")
    lines = file.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    is_json = file.suffix.lower() == ".jsonl"
    images = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            name = _image_in(line, file, number) if is_json else line.strip()
            images.append(CollectionImage(name, _place(name, file.absolute().parent)))
    checked = [image.path for image in images[:_NUM_CHECKED]]
    if checked and not any(is_gdal_path(path) or os.path.exists(path) for path in checked):
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


def _place(name: str, folder: Path) -> str:
    """What a worker opens: an absolute path, or what is no ordinary file."""
    return name if is_gdal_path(name) else os.path.join(folder, name)


def read_source(path: str) -> tuple[str | bytes, str]:
    """What an image is decoded from, and the sha256 of it: a row belongs to what its file held."""
    from ..utils.images import download

    if is_url(path):
        content = download(path)
        return content, hashlib.sha256(content).hexdigest()
    check_input(path, "an image")
    with disk_errors("cannot read", "Copy it again."):
        return path, sha256_of(path)


def is_url(name: str) -> bool:
    return name.startswith(("http://", "https://"))


def printable_name(name: str) -> str:
    """A name of a file as text: it may hold bytes that are none."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
