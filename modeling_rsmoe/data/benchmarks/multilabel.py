"""What the two multilabel benchmarks share: a table with a line for each image and a column for each object."""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

from ...errors_rsmoe import RSMoEError
from ...utils.files import check_input
from ..label_questions import object_questions
from ..labels import ObjectRecord
from .files import Record, Source, split_of
from .karpathy import karpathy_entries


def read_table(file: Path, delimiter: str) -> Iterator[tuple[str, tuple[str, ...], tuple[str, ...]]]:
    """For each line the image's name, the objects that it has (1) and those that it has not (0).

    Raises:
        RSMoEError: the file is no such table.
    """
    check_input(file, "a published file")
    try:
        rows = list(csv.reader(file.read_text(encoding="utf-8-sig").splitlines(), delimiter=delimiter))
    except (UnicodeDecodeError, csv.Error) as error:
        raise RSMoEError(f"{file} is no table of text ({error}); download it again") from None
    names = [name.strip() for name in rows[0][1:] if name.strip()] if rows else []
    if not names:
        raise RSMoEError(f"{file}:1: no names of objects found; is it the published file?")
    for number, row in enumerate(rows[1:], start=2):
        cells = [cell.strip() for cell in row]
        if not any(cells):
            continue
        values = cells[1 : len(names) + 1]
        if not cells[0] or len(values) != len(names) or not {"0", "1"}.issuperset(values):
            line = delimiter.join(row)[:100]
            raise RSMoEError(f"{file}:{number}: {line!r} found, expected an image and {len(names)} times 0 or 1")
        labels = dict(zip(names, values, strict=True))
        yield (
            cells[0],
            tuple(name for name, value in labels.items() if value == "1"),
            tuple(name for name, value in labels.items() if value == "0"),
        )


def caption_splits(source: Source, *names: str) -> dict[str, str]:
    """File name -> split in a captioning dataset of the same images, by the first of these files that is there."""
    entries = karpathy_entries(source.file(*names), source.folder)
    return {entry.text("filename"): split_of(entry, source.benchmark.splits) for entry in entries}


def labels_and_questions(records: Sequence[ObjectRecord], splits: Sequence[str]) -> Iterator[Record]:
    """The records of the chosen splits, then the questions about them."""
    yield from (record for record in records if record.split in splits)
    yield from object_questions([record for split in splits for record in records if record.split == split])
