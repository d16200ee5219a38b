"""What a result came from and took: the hash of a checkpoint, versions of packages, memory."""

import hashlib
import platform
import sys
from collections.abc import Iterable
from contextlib import suppress
from importlib import metadata
from pathlib import Path

from ..errors_rsmoe import RSMoEError
from .files import sha256_of


_PACKAGES = ["rsmoe", "torch", "transformers", "tokenizers", "peft", "trl", "accelerate", "pycocoevalcap"]
_PACKAGES += ["pillow", "numpy"]
CHECKPOINT_FILES = (".safetensors", ".json", ".jinja", ".txt")
STAC_ITEM = "stac_item.json"  # what describes a checkpoint in a folder of it, beside README.md
TRAINING_RECORD = "training.json"  # beside the weights: how they came about
# Files that describe a checkpoint and do not belong to it.
_DESCRIPTIONS = (STAC_ITEM, TRAINING_RECORD, "training_args.json", "trainer_state.json")


def package_versions() -> dict[str, str]:
    """Versions of the packages that results may depend on, as far as they are installed, and of Python."""
    versions = {}
    for name in _PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions | {"python": platform.python_version()}


def peak_memory() -> int:
    """The most memory that this process has held, in bytes.

    On Linux not `ru_maxrss`: a process that was started by a large one begins with the large one's there.
    """
    with suppress(OSError):
        status = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        for line in status:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def folder_sha256(folder: str | Path) -> str:
    """A hash of a checkpoint folder: its weights, settings, templates and vocabularies, by name and content.

    It is the sha256 of the lines ``HASH  NAME`` that ``sha256sum`` prints for the files that end in .safetensors,
    .json, .jinja or .txt, in the folder or below it, sorted by name. Other files, what describes the checkpoint (its
    model card, STAC item and records of training), and whatever lies in hidden folders, change nothing.
    """
    root = Path(folder)
    names = sorted(
        path.relative_to(root).as_posix()
        for path in root.rglob("*")
        if path.suffix in CHECKPOINT_FILES
        and path.name not in _DESCRIPTIONS
        and path.is_file()
        and not any(name.startswith(".") for name in path.relative_to(root).parts)
    )
    if not names:
        raise RSMoEError(f"{root} has no file of a checkpoint ({', '.join(CHECKPOINT_FILES)}); give its folder")
    return sha256_of_lines(f"{sha256_of(root / name)}  {name}" for name in names)


def weights_sha256(folder: str | Path) -> str:
    """A hash of a checkpoint's weights: name, dtype, shape and values of every tensor, whatever the files.

    It stays where only settings are renamed or weights are put into other files. The scores of a report belong to the
    weights of this hash; the settings that they were generated with stand in the report itself.
    """
    import torch
    from safetensors import SafetensorError, safe_open

    files = sorted(Path(folder).glob("*.safetensors"))
    if not files:
        raise RSMoEError(f"{folder} has no weights (*.safetensors); give the folder of a checkpoint")
    lines = []
    for path in files:
        try:
            with safe_open(path, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118
                    values = tensors.get_tensor(name).reshape(-1).view(torch.uint8).numpy()
                    digest = hashlib.sha256(values.data).hexdigest()
                    header = tensors.get_slice(name)
                    lines.append(f"{digest}  {name} {header.get_dtype()} {header.get_shape()}")
        except (OSError, SafetensorError) as error:
            raise RSMoEError(f"{path} cannot be read as safetensors ({error}); fetch it again") from error
    return sha256_of_lines(sorted(lines))


def sha256_of_lines(lines: Iterable[str]) -> str:
    """The sha256 of lines, each with its line end."""
    return hashlib.sha256("".join(f"{line}\n" for line in lines).encode()).hexdigest()
