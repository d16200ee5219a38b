"""The parts of an archive that is being made, and the finished file: one row for each image, in the images' order.

Parts lie in a folder beside the output, `OUTPUT.parts`, with a manifest of the settings that made them. A part is
written under a temporary name and renamed, so that it is whole or absent, and an image's row counts once, however
often it was made. The output is put together out of the parts, part by part, and gets its name when it is whole; then
the folder goes. Memory holds the names of the images and a few parts.
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from filelock import FileLock, Timeout

from ..errors_rsmoe import RSMoEError
from ..utils.extras import require
from ..utils.files import write_whole
from .items import Item


if TYPE_CHECKING:
    import pyarrow as pa

FORMAT = 1
METADATA = b"rsmoe"  # of a Parquet's schema: JSON with `format`, `kind` and `settings`
FEATURES = "features"  # the one column that is not text or numbers
_ROW_GROUP_BYTES, _FILE_BYTES = 64 * 2**20, 2**30  # a folder's files are of about 1 GiB [our decision]


class Store:
    """The state of one archive, for as long as the `with` block runs; a second run of the same output is refused.

    Args:
        output: `NAME.parquet`, or a folder to be made of several such files.
        kind: what rows hold: `captions` or `features`.
        settings: all that rows depend on besides their image, as JSON.
        overwrite: replace the output if it is a file.

    Raises:
        RSMoEError: the output exists, another run is writing it, or its parts were made with other settings.
    """

    def __init__(self, output: Path, kind: str, settings: Mapping[str, Any], overwrite: bool = False):
        self.output, self.folder = output, output.with_name(f"{output.name}.parts")
        self._overwrite = overwrite
        self._manifest = {"format": FORMAT, "kind": kind, "settings": dict(settings)}
        self._lock = FileLock(self.folder / ".lock", blocking=False)
        self._rows: dict[str, tuple[Path, int]] = {}  # image -> its part, and the place in it

    def __enter__(self) -> Self:
        check_output(self.output, self._overwrite)
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire()
        except Timeout as error:
            raise RSMoEError(f"another run is writing {self.output}: wait for it, or give another --output") from error
        try:
            self._check_manifest()
            self._read_parts()
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self._lock.release()

    def missing(self, items: Sequence[Item]) -> list[Item]:
        """Those without a row, each once."""
        return list({item.name: item for item in items if shown(item.name) not in self._rows}.values())

    def add(self, part: str) -> None:
        """Count a part that a worker has written."""
        import pyarrow.parquet as pq

        file = self.folder / part
        with pq.ParquetFile(file) as stored:
            for row, name in enumerate(stored.read(["image"])["image"].to_pylist()):
                self._rows.setdefault(name, (file, row))

    def finish(self, items: Sequence[Item]) -> int:
        """Write the output and remove the parts.

        Returns:
            How many rows hold an error.
        """
        whole = self.folder / "whole"
        shutil.rmtree(whole, ignore_errors=True)
        whole.mkdir()
        writer = _Writer(whole, self._manifest, several=self.output.suffix != ".parquet")
        try:
            for table in self._in_order([shown(item.name) for item in items]):
                writer.add(table)
        finally:
            writer.close()
        # The one file, or the folder of several
        os.replace(whole if self.output.suffix != ".parquet" else whole / writer.files[0], self.output)
        shutil.rmtree(self.folder, ignore_errors=True)
        return writer.errors

    @property
    def sitting(self) -> int:
        """Which run of this archive this is, from 0: parts of one do not get the names of another's."""
        sittings = [int(file.name.split("-")[1]) for file in self.folder.glob("part-*-*")]
        return max(sittings, default=-1) + 1

    def _check_manifest(self) -> None:
        file = self.folder / "manifest.json"
        if not file.exists():
            write_whole(file, json.dumps(self._manifest, indent=2, ensure_ascii=False, default=str) + "\n")
            return
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
            before: dict[str, Any] = {"format": found["format"], "kind": found["kind"], **found["settings"]}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RSMoEError(f"{file} cannot be read ({error}): remove {self.folder} to start again") from error
        settings = json.loads(json.dumps(self._manifest["settings"]))
        now = {"format": FORMAT, "kind": self._manifest["kind"], **settings}
        changed = [
            f"{name} was {before.get(name)}, is {now.get(name)}"
            for name in {**before, **now}
            if before.get(name) != now.get(name)
        ]
        if changed:
            raise RSMoEError(
                f"{self.folder} was begun with other settings ({'; '.join(changed)}): give those again, another --output, "
                "or remove the folder to start again"
            )

    def _read_parts(self) -> None:
        import pyarrow as pa

        for begun in self.folder.glob(".part-*.tmp"):  # a worker ended while writing
            shutil.rmtree(begun, ignore_errors=True)
        for notes in self.folder.glob(".part-*.notes"):
            notes.unlink()
        for file in sorted(self.folder.glob("part-*.parquet")):
            try:
                self.add(file.name)
            except (OSError, pa.ArrowInvalid):  # damaged after it was written: its images are described again
                file.unlink()

    def _in_order(self, names: Sequence[str]) -> "Iterator[pa.Table]":
        import pyarrow.parquet as pq

        @lru_cache(maxsize=4)
        def read(file: Path) -> "pa.Table":
            with pq.ParquetFile(file) as stored:
                return stored.read()

        for file, places in groupby((self._rows[name] for name in names), key=lambda place: place[0]):
            yield read(file).take([row for _, row in places])


def check_output(output: Path, overwrite: bool = False) -> None:
    """Refuse an output that exists: it may be hours of work.

    Raises:
        RSMoEError: it exists, or pyarrow is missing.
    """
    require("pyarrow", "geo")
    if output.is_dir():
        raise RSMoEError(f"the folder {output} exists: give --output another name, or remove it first")
    if output.exists() and not overwrite:
        raise RSMoEError(f"{output} exists: give --output another name, or --overwrite")


class _Writer:
    """Tables into Parquet files of row groups of about one size.

    Attributes:
        files: the names of the files.
        errors: how many rows hold an error.
    """

    def __init__(self, folder: Path, manifest: Mapping[str, Any], several: bool):
        self.files: list[str] = []
        self.errors = 0
        self._folder, self._several = folder, several
        self._metadata = {METADATA: json.dumps(manifest, default=str).encode()}
        self._tables: list[pa.Table] = []
        self._open: Any = None
        self._written = 0  # bytes of the open file, as they are in memory

    def add(self, table: "pa.Table") -> None:
        self.errors += len(table) - table["error"].null_count
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
        if self._open is not None and self._several and self._written + table.nbytes > _FILE_BYTES:
            self._open.close()
            self._open = None
        if self._open is None:
            self.files.append(f"{len(self.files):05}.parquet")
            self._open, self._written = open_writer(self._folder / self.files[-1], table.schema), 0
        self._open.write_table(table)
        self._written += table.nbytes


def open_writer(file: Path, schema: "pa.Schema") -> Any:
    """A `pyarrow.parquet.ParquetWriter`; features get no dictionary: no two of their numbers' runs are alike."""
    import pyarrow.parquet as pq

    text = [name for name in schema.names if name != FEATURES]
    return pq.ParquetWriter(file, schema, compression="zstd", use_dictionary=text)


def shown(name: str) -> str:
    """A name as text: names of files may hold bytes that are none."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
