"""Files: written whole or not at all, by one process at a time; known by their hash, kept in a cache."""

import hashlib
import json
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ..errors_rsmoe import RSMoEError


CACHE_VARIABLE = "RSMOE_CACHE"
MAX_ALIASES = 16  # of a YAML: lists of lists of aliases mean a billion items in some hundred bytes


def write_whole(path: str | Path, text: str) -> None:
    """Write `text` as it stands: whoever reads `path` finds the old or the new text. Folders are made as needed."""
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """A path for a library to write to, of the same name in a hidden folder beside `path`: what is there when the
    block ends is renamed to `path`, and nothing is left of a block that fails."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.", suffix=".tmp"))
    try:
        yield folder / target.name
        if target.exists():
            shutil.copymode(target, folder / target.name)
        os.replace(folder / target.name, target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def parse_json(content: bytes) -> Any:
    """What a file or a line of JSON holds.

    Raises:
        ValueError: it is no UTF-8 or no JSON, is nested too deep, or holds half a letter (a lone surrogate such as
            `\\ud800`), which no file could be written with again.
    """
    try:
        value = json.loads(content.decode("utf-8"))
        if b"\\ud" in content.lower():
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error
    return value


def parse_yaml(text: str) -> Any:
    """What a file of YAML holds, of plain types only.

    Raises:
        ValueError: it is no YAML, is nested too deep, or has more than `MAX_ALIASES`.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        num_aliases = 0

        def compose_node(self, parent: Any, index: Any) -> Any:
            self.num_aliases += self.check_event(yaml.AliasEvent)
            if self.num_aliases > MAX_ALIASES:
                raise ValueError(f"it has more than {MAX_ALIASES} aliases")
            return super().compose_node(parent, index)

    try:
        return yaml.load(text, Loader)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error


def sha256_of(path: str | Path) -> str:
    """The sha256 of a file's content, in lower-case hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cache_folder(cache_dir: str | Path | None = None) -> Path:
    """Where downloads and image features are kept: `cache_dir`, else ``$RSMOE_CACHE``, else ``~/.cache/rsmoe``."""
    return Path(cache_dir or os.environ.get(CACHE_VARIABLE) or "~/.cache/rsmoe").expanduser()


@contextmanager
def disk_errors(doing: str, remedy: str) -> Iterator[None]:
    """Turn an error of the file system (no space, no permission, ...) into one clear RSMoEError. Also a decorator.
    `doing` says what cannot be done ("cannot write"), `remedy` what the user should do."""
    try:
        yield
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        raise RSMoEError(f"{doing}{where}: {error.strerror or error}. {remedy}") from error


@contextmanager
def only_writer(output: str | Path) -> Iterator[None]:
    """Within: no other process writes `output`, a file or folder that takes long to make.

    The operating system keeps the lock, so it goes with its process, however that ends, here or on another machine
    that shares the disk. The file `.NAME.writer` beside `output` says who holds it.

    Raises:
        RSMoEError: another process holds it; the message says which, where and since when. Or the folder that it
            stands in cannot be written.
    """
    from filelock import FileLock, Timeout  # not at the top: `rsmoe --help` needs no lock

    target = Path(os.path.abspath(output))
    file = target.with_name(f".{target.name}.writer")
    lock = FileLock(file, blocking=False)
    with disk_errors("cannot write", f"Give {target.name} another place."):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire()
        except Timeout as error:
            holder = ""
            with suppress(OSError):
                holder = file.read_text(encoding="utf-8")
            raise RSMoEError(
                f"{output} is being written by {holder or 'another process'}: wait for it, or give another output"
            ) from error
    try:
        with suppress(OSError):  # a full disk: the lock holds all the same
            began = time.strftime("%Y-%m-%d %H:%M:%S %z")
            file.write_text(f"process {os.getpid()} on {platform.node()} since {began}", encoding="utf-8")
        yield
    finally:
        file.unlink(missing_ok=True)  # while it is held: whoever waits for it looks whether it is still there
        lock.release()


def check_input(path: str | Path, kind: str, shown: str | None = None) -> None:
    """Refuse what is no regular file that can be read, or empty: opening a pipe or a device may wait for ever. Every
    file that a user names is checked so before it is opened.

    Args:
        path: the file.
        kind: what it should be, for errors: "an image".
        shown: its name in errors.
    """
    shown = shown or str(path)
    try:
        if os.path.isdir(path):
            raise RSMoEError(f"{shown} is a folder, not {kind}: name the files in it")
        if not os.path.exists(path):
            folder = os.getcwd().encode("utf-8", "replace").decode("utf-8")
            raise RSMoEError(f"there is no file {shown}: check the path (paths are relative to {folder})")
        if not os.path.isfile(path):
            raise RSMoEError(f"{shown} is not a regular file: save it to a file first")
        if os.path.getsize(path) == 0:
            raise RSMoEError(f"{shown} is empty (0 bytes): copy or download it again")
        with open(path, "rb"):
            pass
    except OSError as error:
        raise RSMoEError(f"{shown} cannot be opened ({error.strerror}): check its permissions") from error


def check_outputs(*files: Path | None, overwrite: bool = True) -> None:
    """Make the folders that these files will stand in, so that work is not lost for want of a place to write it.
    Refuse files that cannot be written, or exist."""
    for file in filter(None, files):
        if file.exists() and not overwrite:
            raise RSMoEError(f"{file} exists: give another name, or --overwrite")
        with disk_errors("cannot write", f"Give {file.name} another place."):
            file.parent.mkdir(parents=True, exist_ok=True)
        if file.is_dir() or not os.access(file.parent, os.W_OK):
            problem = "is a folder" if file.is_dir() else f"cannot be written: no permission in {file.parent}"
            raise RSMoEError(f"{file} {problem}; give the name of a file in a folder of yours")
