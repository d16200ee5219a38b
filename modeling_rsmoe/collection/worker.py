"""A worker: reads the items of a shard (images, tiles), lets the model describe them batch by batch, and writes the
shard.

An item that cannot be read becomes a row with its error. Whatever else goes wrong ends the run, which then continues
from its shards. What a worker is describing is noted beside the shard, so that an item that ends its worker (a
decoder that crashes, memory that runs out) is described alone when the shard is begun again, and becomes a row with an
error when it has ended `MAX_CRASHES` workers that way; a worker that ended for another reason costs nothing but time.
"""

import os
import platform
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ..errors_rsmoe import RSMoEError
from ..utils.files import whole_file
from .images import KEY, VERSION, Item, Row, printable_name
from .store import open_writer


if TYPE_CHECKING:
    from PIL import Image

    from .describers import Describer

MAX_CRASHES = 2  # of workers while they described one item alone [our decision]


class Shard(NamedTuple):
    """Items whose rows, in this order, are one file of this name."""

    name: str
    items: list[Item]


class ShardResult(NamedTuple):
    """What became of a shard; `num_attempts` is more than 1 where workers ended."""

    name: str
    num_rows: int
    num_attempts: int


def write_shard(describer: "Describer", folder: Path, shard: Shard, batch_size: int) -> ShardResult:
    """Describe the items of a shard and write it into `folder`, a row for each.

    Raises:
        RSMoEError: the model cannot be loaded.
        OSError: the shard cannot be written.
    """
    import pyarrow as pa

    describer.open()
    notes = _Notes(folder / f".{shard.name}.notes")
    size = batch_size if notes.num_attempts == 1 else 1
    rows: list[Row] = []
    for start in range(0, len(shard.items), size):
        items = shard.items[start : start + size]
        if notes.crashes[start] >= MAX_CRASHES:
            error = f"{MAX_CRASHES} workers ended while they described it: try the file by itself"
            rows.append({**items[0].known(), "error": error})
            continue
        notes.write(f"{start} {len(items)}")
        rows += _rows(describer, items)
    for item in shard.items:
        item.close()
    table = describer.table(rows)
    for name, values in ((KEY, [item.key for item in shard.items]), (VERSION, [row.get(VERSION) for row in rows])):
        table = table.append_column(name, pa.array(values, pa.string()))
    with whole_file(folder / shard.name) as temporary:
        with open_writer(temporary, table.schema) as writer:
            writer.write_table(table)
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
    notes.file.unlink(missing_ok=True)
    return ShardResult(shard.name, len(rows), notes.num_attempts)


def _rows(describer: "Describer", items: Sequence[Item]) -> list[Row]:
    rows: list[Row] = []
    described, images = [], []
    for item in items:
        row = item.known()
        rows.append(row)
        try:
            image = item.read(row, describer.image_side, describer.raster_options)
        except RSMoEError as error:
            row["error"] = printable_name(str(error))
            continue
        if image is not None:
            described.append(row)
            images.append(image)
    for row, description in zip(described, _describe(describer, images), strict=True):
        row |= description
    return rows


def _describe(describer: "Describer", images: "list[Image.Image]") -> "list[Row]":
    """A batch that is too large for the GPU is halved."""
    import torch

    if not images:
        return []
    try:
        return describer.describe(images)
    except torch.OutOfMemoryError as error:
        if len(images) == 1:
            raise RSMoEError("the GPU's memory does not suffice for one image: free it, or use a CPU") from error
    torch.cuda.empty_cache()
    half = len(images) // 2
    return _describe(describer, images[:half]) + _describe(describer, images[half:])


class _Notes:
    """How often a shard was begun, and at which images that ended.

    A line is `begun` with the machine and process that did, or the index and number of the images described next;
    `crashes` counts by an image's index how often it was the only one described when the worker ended.
    """

    def __init__(self, file: Path):
        self.file = file
        lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
        self.num_attempts = sum(line.startswith("begun") for line in lines) + 1
        self.crashes: Counter[int] = Counter()
        for line, after in pairwise([*lines, "begun"]):
            index, _, num_images = line.partition(" ")
            if after.startswith("begun") and index.isdecimal() and num_images == "1":
                self.crashes[int(index)] += 1
        self.write(f"begun {platform.node()} {os.getpid()}")

    def write(self, line: str) -> None:
        with self.file.open("a", encoding="utf-8") as file:
            file.write(f"{line}\n")
