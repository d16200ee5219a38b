"""The shards of a run that is not finished, and the finished file: one row for each item (an image, a tile), in order.

Shards lie in a folder beside the output, `OUTPUT.shards`, with a manifest of the settings that made them. A shard is
written under a temporary name and renamed, so that it is whole or absent, and an item's row counts once, however
often it was written. The output is joined out of the shards, one after the other, and gets its name when it is whole;
then the folder goes. Memory holds the keys of the items and a few shards.
"""

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from ..errors_rsmoe import RSMoEError
from ..utils.extras import require
from ..utils.files import only_writer, parse_json, write_whole
from .images import KEY, VERSION, Item, Row, printable_name


if TYPE_CHECKING:
    import pyarrow as pa

FORMAT = 1
METADATA = b"rsmoe"  # of a Parquet's schema: JSON with `format`, `kind` and `settings`
FEATURES = "features"  # the one column that is not text or numbers
_ROW_GROUP_BYTES = 64 * 2**20
_FILE_BYTES = 2**30  # of each of a folder's files, about [our decision]


class Store:
    """The state of one run, for as long as the `with` block runs; a second run of the same output is refused, and so
    are shards of another kind or of other settings, which are all that rows depend on besides their item."""

    def __init__(self, output: Path, kind: str, settings: Mapping[str, Any], overwrite: bool = False):
        self.output, self.folder = output, output.with_name(f"{output.name}.shards")
        self._overwrite = overwrite
        self._manifest = json.loads(json.dumps({"format": FORMAT, "kind": kind, "settings": settings}, default=str))
        self._rows: dict[str, tuple[Path, int]] = {}  # an item's key -> its shard, and the row in it
        self._versions: dict[str, str | None] = {}  # of what the row describes

    def __enter__(self) -> Self:
        refuse_existing(self.output, self._overwrite)
        with ExitStack() as entered:
            entered.enter_context(only_writer(self.output))
            self.folder.mkdir(parents=True, exist_ok=True)
            self._check_manifest()
            self._read_shards()
            self._entered = entered.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._entered.close()

    def missing(self, items: Iterable[Item]) -> list[Item]:
        """The items without a row, each once; the row of an item that has changed since goes."""
        unique = {item.key: item for item in items}
        for key, item in unique.items():
            if key in self._rows and item.has_changed(self._versions[key]):
                del self._rows[key]
        return [item for key, item in unique.items() if key not in self._rows]

    def add(self, shard: str) -> None:
        """Count a shard that a worker has written."""
        import pyarrow.parquet as pq

        file = self.folder / shard
        with pq.ParquetFile(file) as stored:
            columns = stored.read([KEY, VERSION])
        for row, key in enumerate(columns[KEY].to_pylist()):
            self._rows[key] = (file, row)  # the last one counts: an earlier one may be of other content
            self._versions[key] = columns[VERSION][row].as_py()

    def rows(self, items: Iterable[Item], columns: Sequence[str]) -> Iterator[Row]:
        """These columns of the rows of items, in their order."""
        for table in self._in_order(items, columns):
            yield from table.to_pylist()

    def finish(
        self, items: Sequence[Item], summary: Mapping[str, Any] = {}, metadata: Mapping[bytes, bytes] = {}
    ) -> Counter[str]:
        """Write the output, a row for each item in this order, and remove the shards.

        Args:
            items: of the collection.
            summary: what the metadata says besides the settings.
            metadata: of the schema besides ours.

        Returns:
            How many rows have which error, in which the item's name is "...".
        """
        joined = self.folder / "joined"
        shutil.rmtree(joined, ignore_errors=True)
        joined.mkdir()
        is_folder = self.output.suffix != ".parquet"
        ours = {METADATA: json.dumps({**self._manifest, **summary}, ensure_ascii=False).encode()}
        writer = _Writer(joined, {**ours, **metadata}, is_folder)
        names = (printable_name(item.path) for item in items)
        errors: Counter[str] = Counter()
        try:
            for table in self._in_order(items):
                writer.add(table.drop_columns([KEY, VERSION]))
                for error, name in zip(table["error"].to_pylist(), names):  # in this order: no name may be lost
                    if error is not None:
                        errors[error.replace(name, "...")] += 1
        finally:
            writer.close()
        os.replace(joined if is_folder else joined / writer.files[0], self.output)
        shutil.rmtree(self.folder, ignore_errors=True)
        return errors

    def next_session(self) -> int:
        """The number of this session, from 0: its shards do not get the names of an earlier one's."""
        sessions = [int(file.name.split("-")[1]) for file in self.folder.glob("shard-*-*")]
        return max(sessions, default=-1) + 1

    def _check_manifest(self) -> None:
        file = self.folder / "manifest.json"
        if not file.exists():
            write_whole(file, json.dumps(self._manifest, indent=2, ensure_ascii=False) + "\n")
            return
        try:
            before = _flat(parse_json(file.read_bytes()))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RSMoEError(f"{file} cannot be read ({error}): remove {self.folder} to start again") from error
        now = _flat(self._manifest)
        names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
        changed = [f"{name} was {before.get(name)}, is {now.get(name)}" for name in names]
        if changed:
            raise RSMoEError(
                f"{self.folder} was begun with other settings ({'; '.join(changed)}): give those again, another "
                "--output, or remove the folder to start again"
            )

    def _read_shards(self) -> None:
        import pyarrow as pa

        for unfinished in self.folder.glob(".shard-*.tmp"):  # a worker ended while writing
            shutil.rmtree(unfinished, ignore_errors=True)
        for notes in self.folder.glob(".shard-*.notes"):
            notes.unlink()
        for file in sorted(self.folder.glob("shard-*.parquet")):
            try:
                self.add(file.name)
            except (OSError, pa.ArrowInvalid):  # damaged after it was written: its images are described again
                file.unlink()

    def _in_order(self, items: Iterable[Item], columns: Sequence[str] | None = None) -> "Iterator[pa.Table]":
        import pyarrow.parquet as pq

        @lru_cache(maxsize=4)
        def read_shard(file: Path) -> "pa.Table":
            with pq.ParquetFile(file) as stored:
                return stored.read(columns)

        for file, rows in groupby((self._rows[item.key] for item in items), key=lambda location: location[0]):
            yield read_shard(file).take([row for _, row in rows])


def _flat(manifest: dict[str, Any]) -> dict[str, Any]:
    return {"format": manifest["format"], "kind": manifest["kind"], **manifest["settings"]}


def begun_with(output: Path) -> dict[str, Any]:
    """The settings of the unfinished run that an output has; none if there is no such run."""
    file = output.with_name(f"{output.name}.shards") / "manifest.json"
    try:
        return dict(parse_json(file.read_bytes())["settings"])
    except (OSError, ValueError, KeyError, TypeError):  # the run itself says what is wrong
        return {}


def refuse_existing(output: Path, overwrite: bool = False) -> None:
    """Refuse an output that exists, which may be hours of work, unless it is a file and may be replaced."""
    require("pyarrow", "geo")
    if output.is_dir():
        raise RSMoEError(f"the folder {output} exists: give --output another name, or remove it first")
    if output.exists() and not overwrite:
        raise RSMoEError(f"{output} exists: give --output another name, or --overwrite")


class _Writer:
    """Tables into one Parquet file of row groups of about one size, or several files."""

    def __init__(self, folder: Path, metadata: Mapping[bytes, bytes], splits: bool):
        self.files: list[str] = []
        self._folder, self._splits = folder, splits
        self._metadata = dict(metadata)
        self._tables: list[pa.Table] = []
        self._open: Any = None
        self._written = 0  # bytes of the open file, as they are in memory

    def add(self, table: "pa.Table") -> None:
        self._tables.append(table)
        if sum(table.nbytes for table in self._tables) >= _ROW_GROUP_BYTES:
            self._flush()

    def close(self) -> None:
        self._flush()
        if self._open is not None:
            self._open.close()

    def _flush(self) -> None:
        import pyarrow as pa

        if not self._tables:
            return
        table = pa.concat_tables(self._tables).replace_schema_metadata(self._metadata)
        self._tables = []
        if self._open is not None and self._splits and self._written + table.nbytes > _FILE_BYTES:
            self._open.close()
            self._open = None
        if self._open is None:
            self.files.append(f"{len(self.files):05}.parquet")
            self._open, self._written = open_writer(self._folder / self.files[-1], table.schema), 0
        self._open.write_table(table)
        self._written += table.nbytes


def open_writer(file: Path, schema: "pa.Schema") -> Any:
    """A `pyarrow.parquet.ParquetWriter`; features get no dictionary: their values do not repeat."""
    import pyarrow.parquet as pq

    text = [name for name in schema.names if name != FEATURES]
    return pq.ParquetWriter(file, schema, compression="zstd", use_dictionary=text)
