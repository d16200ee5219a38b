"""A worker: reads the images of a part, lets the model describe them batch by batch, and writes the part.

An image that cannot be read becomes a row with its error. Whatever else goes wrong ends the run, which then goes on
from its parts. What a worker is looking at is noted beside the part, so that an image that ends its worker (a decoder
that crashes, memory that runs out) is looked at alone when the part is begun again, and becomes a row with an error
when it has ended `DEATHS` workers that way; a worker that ended for another reason costs nothing but time.
"""

import hashlib
import os
import platform
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors_rsmoe import RSMoEError
from ..utils.files import sha256_of, whole_file
from .items import Item, is_url
from .store import open_writer, shown


if TYPE_CHECKING:
    from PIL import Image

    from .describers import Describer

DEATHS = 2  # of workers while one image alone was looked at [our decision]


class Part(NamedTuple):
    """Some images whose rows are one file, `name`."""

    name: str
    items: list[Item]


class Made(NamedTuple):
    """What became of a part."""

    name: str
    rows: int
    begun: int  # 1, or more where workers ended


def make_part(describer: "Describer", folder: Path, part: Part, batch_size: int) -> Made:
    """Describe the images of a part and write it into `folder`, a row for each image.

    Raises:
        RSMoEError: the model cannot be loaded. OSError: the part cannot be written.
    """
    describer.open()
    notes = _Notes(folder / f".{part.name}.notes")
    size = batch_size if notes.begun == 1 else 1
    rows: list[dict[str, Any]] = []
    for start in range(0, len(part.items), size):
        items = part.items[start : start + size]
        if notes.deaths[start] >= DEATHS:
            rows.append({"error": f"{DEATHS} workers ended while they looked at it: look at the file by itself"})
            continue
        notes.write(f"{start} {len(items)}")
        rows += _rows(describer, items)
    for item, row in zip(part.items, rows, strict=True):
        row["image"] = shown(item.name)
    _write(describer.table(rows), folder / part.name)
    notes.remove()
    return Made(part.name, len(rows), notes.begun)


def _rows(describer: "Describer", items: Sequence[Item]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    pictures = []
    for item in items:
        try:
            picture, digest = _read(item.path)
        except RSMoEError as error:
            rows.append({"error": shown(str(error))})
            continue
        pictures.append(picture)
        rows.append({"sha256": digest, "width": picture.width, "height": picture.height})
    described = iter(_describe(describer, pictures))
    return [row if "error" in row else {**row, **next(described)} for row in rows]


def _describe(describer: "Describer", pictures: "list[Image.Image]") -> list[dict[str, Any]]:
    """A batch that is too large for the GPU is halved."""
    import torch

    if not pictures:
        return []
    try:
        return describer.describe(pictures)
    except torch.OutOfMemoryError as error:
        if len(pictures) == 1:
            raise RSMoEError("the GPU's memory does not suffice for one image: free it, or use a CPU") from error
    torch.cuda.empty_cache()
    half = len(pictures) // 2
    return _describe(describer, pictures[:half]) + _describe(describer, pictures[half:])


def _read(path: str) -> "tuple[Image.Image, str]":
    """A picture, and the sha256 of its file.

    Raises:
        RSMoEError: as of `read_image`.
    """
    from ..utils.images import download, read_image

    if is_url(path):
        content = download(path)
        return read_image(content, name=path), hashlib.sha256(content).hexdigest()
    picture = read_image(path)
    try:
        return picture, sha256_of(path)
    except OSError as error:  # gone meanwhile
        raise RSMoEError(f"{path} cannot be read ({error.strerror}): copy it again") from error


def _write(table: Any, file: Path) -> None:
    with whole_file(file) as temporary:
        with open_writer(temporary, table.schema) as writer:
            writer.write_table(table)
        with temporary.open("rb") as written:
            os.fsync(written.fileno())


class _Notes:
    """How often a part was begun, and at which images that ended.

    A line is `begun` with the machine and process that did, or the place and number of the images looked at next.

    Attributes:
        begun: 1 the first time.
        deaths: how often the image at a place was the only one looked at when the worker ended.
    """

    def __init__(self, file: Path):
        self._file = file
        lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
        self.begun = sum(line.startswith("begun") for line in lines) + 1
        self.deaths: Counter[int] = Counter()
        for line, after in pairwise([*lines, "begun"]):
            place, _, number = line.partition(" ")
            if after.startswith("begun") and place.isdecimal() and number == "1":
                self.deaths[int(place)] += 1
        self.write(f"begun {platform.node()} {os.getpid()}")

    def write(self, line: str) -> None:
        with self._file.open("a", encoding="utf-8") as file:
            file.write(f"{line}\n")

    def remove(self) -> None:
        self._file.unlink(missing_ok=True)
