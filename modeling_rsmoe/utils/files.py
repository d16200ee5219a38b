"""Files: written whole or not at all, known by their hash, kept in a cache."""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors_rsmoe import RSMoEError


CACHE_VARIABLE = "RSMOE_CACHE"


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


def sha256_of(path: str | Path) -> str:
    """The sha256 of a file's content, in lower-case hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cache_folder(cache_dir: str | Path | None = None) -> Path:
    """The folder that downloads and image features are kept in: `cache_dir`, else ``$RSMOE_CACHE``, else ``~/.cache/rsmoe``."""
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


def check_input(path: str, kind: str, shown: str | None = None) -> None:
    """Refuse what is no file that can be read, and has a byte. Errors say what `kind` it should be ("an image"), and call
    it `shown`."""
    shown = shown or path
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
