"""Checkpoint folders that appear whole or not at all, never over something that is not ours; damaged files."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from ..configuration_rsmoe import RSMoEConfig
from ..errors_rsmoe import RSMoEError
from ..utils.files import disk_errors, only_writer


def check_target(output: Path, overwrite: bool) -> None:
    """Raise if `output` holds something that must not be replaced."""
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    if not overwrite:
        raise RSMoEError(f"{output} exists: choose another folder, or allow overwriting it.")
    try:
        config = json.loads((output / "config.json").read_text(encoding="utf-8"))
        ours = config["model_type"] == RSMoEConfig.model_type
    except (OSError, ValueError, KeyError, TypeError):
        ours = False
    if not ours:  # a mistyped path must not cost anyone a folder
        raise RSMoEError(f"{output} is no RS-MoE checkpoint, so it is not overwritten: choose another folder.")


def check_space(needed: int, output: Path) -> None:
    """Raise unless `needed` bytes are free where `output` is to stand."""
    existing = next(folder for folder in output.parents if folder.is_dir())
    free = shutil.disk_usage(existing).free
    if free < needed:
        sizes = f"it needs {needed / 1e6:.0f} MB, {free / 1e6:.0f} MB are free"
        raise RSMoEError(f"no space for {output}: {sizes}. Free some space or choose another disk.")


def folder_line(folder: Path) -> str:
    """A checkpoint's folder and its size, for a person: "out (367 MB)"."""
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return f"{folder} ({size / 1e6:.0f} MB)"


@contextmanager
def reading(problem: str, remedy: str = "fetch it again") -> Iterator[None]:
    """Within: whatever a library raises about a file that it cannot read becomes an `RSMoEError`.

    Args:
        problem: in words: "model.safetensors cannot be read".
        remedy: what the user should do.
    """
    try:
        yield
    except RSMoEError:
        raise
    except Exception as error:  # libraries raise errors of any class for a damaged file
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        if mark := getattr(error, "problem_mark", None):  # of PyYAML, which writes it on a line of its own
            reason = f"{reason}, line {mark.line + 1}"
        raise RSMoEError(f"{problem} ({reason}): {remedy}.") from error


@contextmanager
def whole_folder(output: Path, overwrite: bool = False) -> Iterator[Path]:
    """A new folder beside `output` that takes its name when the block ends well, and is removed otherwise.

    What a process that was killed left there goes, and an `output` that it had just moved away comes back.

    Args:
        output: the folder to make.
        overwrite: replace it if it is an RS-MoE checkpoint already.

    Raises:
        RSMoEError: as of `only_writer` and `check_target`; the disk is full.
    """
    unfinished, old = (output.with_name(f".{output.name}.{suffix}") for suffix in ("partial", "old"))
    with only_writer(output), disk_errors(f"cannot write {output}", "Free some space or choose another folder."):
        if old.exists() and not output.exists():
            old.rename(output)
        check_target(output, overwrite)
        try:
            for left in (unfinished, old):
                shutil.rmtree(left, ignore_errors=True)
            unfinished.mkdir()
            yield unfinished
            if output.exists():
                output.rename(old)
            try:
                unfinished.rename(output)
            except OSError:
                if old.exists():
                    old.rename(output)
                raise
            shutil.rmtree(old, ignore_errors=True)
        except SafetensorError as error:  # how safetensors reports an error of the file system
            raise RSMoEError(f"cannot write {output}: {error}. Free some space or choose another folder.") from error
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
