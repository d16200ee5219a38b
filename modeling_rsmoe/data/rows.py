"""Rows of the files that people keep captions and questions in: JSON, JSON lines, CSV, Parquet and Arrow.

A row is an ``Entry``: its values by column, in lower case, with its place for errors. Nothing is unpickled and no
script is run; what a row means stands in ``own``.
"""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors_rsmoe import RSMoEError, first_line
from ..utils.extras import require
from ..utils.files import check_input, parse_json
from .records import Entry, json_lines


TABLES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".arrow")
_BATCH = 16  # rows of Parquet that are read at once: their images are in memory
_MAX_GROUP_BYTES = 4 * 2**30  # of a group of rows in Parquet, unpacked [our decision]


def rows(file: Path) -> Iterator[Entry]:
    """The rows of a file, by its suffix; paths in them are relative to its folder.

    JSON is a list of objects, or an object that holds one. COCO's ``images`` come with the ``captions`` that its
    ``annotations`` have of them.

    Raises:
        RSMoEError: the file, or a row of it, cannot be read.
    """
    check_input(file, "a table")
    suffix = file.suffix.lower()
    if suffix == ".jsonl":
        found = json_lines(file, file.parent)
    elif suffix == ".json":
        found = _json_rows(file)
    elif suffix in (".csv", ".tsv"):
        found = _csv_rows(file)
    else:
        found = _arrow_rows(file)
    for entry in found:
        yield Entry(entry.where, entry.folder, {str(key).strip().lower(): v for key, v in entry.values.items()})


def _json_rows(file: Path) -> Iterator[Entry]:
    try:
        content = parse_json(file.read_bytes().removeprefix(b"\xef\xbb\xbf"))
    except ValueError as error:  # UnicodeDecodeError and JSONDecodeError are both ValueErrors
        raise RSMoEError(f"{file} is not UTF-8 JSON ({error}); correct it") from None
    captions: dict[Any, list[Any]] | None = None
    key = ""
    if isinstance(content, dict):
        key = next((name for name in ("images", "annotations", "data") if isinstance(content.get(name), list)), "")
        if key == "images" and isinstance(content.get("annotations"), list):
            captions = _coco_captions(file, content["annotations"])
    listed = content[key] if key else content
    if not isinstance(listed, list):
        raise RSMoEError(f"{file}: {type(content).__name__} found, expected a list of objects, or COCO's images")
    for number, values in enumerate(listed):
        entry = _object(file, key, number, values)
        if captions is None:
            yield entry
        elif texts := captions.get(_id(entry, "id")):  # COCO lists images without captions too
            yield Entry(entry.where, file.parent, {**values, "captions": texts})


def _coco_captions(file: Path, annotations: list[Any]) -> dict[Any, list[Any]]:
    """Captions by the image's id; boxes and masks have none."""
    captions: dict[Any, list[Any]] = {}
    for number, values in enumerate(annotations):
        entry = _object(file, "annotations", number, values)
        if "caption" in values:
            captions.setdefault(_id(entry, "image_id"), []).append(values["caption"])
    return captions


def _id(entry: Entry, key: str) -> int | str:
    value = entry.field(key)
    if not isinstance(value, (int, str)):
        raise entry.error(f'"{key}" is {value!r}, expected the id of an image')
    return value


def _object(file: Path, key: str, number: int, values: Any) -> Entry:
    where = f"{file}: {key}[{number}]"
    if not isinstance(values, dict):
        raise RSMoEError(f"{where}: {type(values).__name__} found, expected an object")
    return Entry(where, file.parent, values)


def _csv_rows(file: Path) -> Iterator[Entry]:
    """Of UTF-8 with or without a byte order mark; the header says whether ``,``, ``;``, tab or ``|`` separates."""
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            header = stream.readline()
            stream.seek(0)
            reader = csv.reader(stream, delimiter=max(",;\t|", key=header.count), strict=True)
            columns = next(reader, [])  # none in a file of a byte order mark alone
            for cells in reader:
                where = f"{file}:{reader.line_num}"
                if len(cells) > len(columns):
                    problem = f"{len(cells)} cells in {len(columns)} columns"
                    raise RSMoEError(f'{where}: {problem}; put "quotes" around a text that holds the separator')
                if cells:
                    yield Entry(where, file.parent, dict(zip(columns, cells)))
    except UnicodeDecodeError as error:
        raise RSMoEError(f"{file} is not UTF-8 text ({error}); save it as CSV in UTF-8") from None
    except csv.Error as error:
        raise RSMoEError(f"{file}:{reader.line_num}: no row of CSV ({error}); correct it") from None


def _arrow_rows(file: Path) -> Iterator[Entry]:
    """Of Parquet, or of what ``save_to_disk`` of Hugging Face datasets writes; an image is its bytes and path."""
    pyarrow = require("pyarrow", "train")
    number = 0
    try:
        for batch in _parquet_batches(file) if file.suffix.lower() == ".parquet" else _stream_batches(file):
            for start in range(0, batch.num_rows, _BATCH):
                for values in batch.slice(start, _BATCH).to_pylist():
                    yield Entry(f"{file}: row {number}", file.parent, values)
                    number += 1
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:  # the last: dates out of range
        raise RSMoEError(f"{file} cannot be read ({first_line(error)}); save it again") from error


def _parquet_batches(file: Path) -> Iterator[Any]:
    with require("pyarrow.parquet", "train").ParquetFile(file) as parquet:
        for group in range(parquet.metadata.num_row_groups):
            size = parquet.metadata.row_group(group).total_byte_size
            if size > _MAX_GROUP_BYTES:
                limit = f"more than {_MAX_GROUP_BYTES:,}"
                raise RSMoEError(f"{file}: {size:,} bytes in one group of rows, {limit}; write smaller groups")
        yield from parquet.iter_batches(_BATCH)


def _stream_batches(file: Path) -> Iterator[Any]:
    pyarrow = require("pyarrow", "train")
    with pyarrow.memory_map(str(file)) as source, pyarrow.ipc.open_stream(source) as stream:
        yield from stream
