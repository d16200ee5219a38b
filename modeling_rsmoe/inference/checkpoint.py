"""A checkpoint by the name that a user knows it by: a folder, one that can be assembled, or one on the Hub."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors_rsmoe import RSMoEError, first_line
from ..utils.progress import Progress, no_progress
from ..utils.quiet import quiet_libraries
from .loading import check_folder, check_tokens, open_model, open_processor, read_json


if TYPE_CHECKING:
    from ..modeling_rsmoe import RSMoEForConditionalGeneration
    from ..processing_rsmoe import RSMoEProcessor

DEFAULT_MODEL = "rs-moe-nano"
# Weights, settings, and what describes them (`hub.records`).
_HUB_FILES = ["*.yaml", "README.md", "picture.png", "*.json", "*.jinja", "*.safetensors", "qformer_tokenizer/*"]


@dataclass(frozen=True)
class Checkpoint:
    """A loaded checkpoint.

    Attributes:
        name: as the user named it.
        model: in evaluation mode, on its device.
        processor: that makes its inputs.
        folder: that both were loaded from.
    """

    name: str
    model: "RSMoEForConditionalGeneration"
    processor: "RSMoEProcessor"
    folder: Path

    @property
    def public_name(self) -> str:
        """The name for strangers: of a folder its own name, without where it lies."""
        return self.folder.resolve().name if Path(self.name).expanduser().is_dir() else self.name

    def revision(self) -> str:
        """As of `revision_of`."""
        return revision_of(self.folder)


def load(
    name: str | None = None,
    dtype: str | None = None,
    device: str | None = None,
    progress: Progress = no_progress,
    kernels: str | None = None,
) -> Checkpoint:
    """Load a checkpoint to run it.

    Args:
        name: a folder, one that can be assembled such as `"rs-moe-nano"` (the default; assembled on first use, kept in
            the cache), or a repository of the Hub.
        dtype: of the weights: float32, bfloat16, float16, int8, int8-dynamic or nf4; by default bfloat16 on a GPU,
            else float32, and what the checkpoint has where it is quantised.
        device: such as `"cpu"` or `"cuda:1"`; by default a GPU if there is one.
        progress: told what is being done.
        kernels: as of `layers.use_fast_kernels`.

    Raises:
        RSMoEError: there is no such checkpoint, it is of another model type, or it is damaged.
    """
    name = name or DEFAULT_MODEL
    with quiet_libraries():
        folder = find_checkpoint(name, progress)
        progress(f"loading {name}")
        import torch

        from .. import RSMoEForConditionalGeneration
        from ..hub.quantize import loading_arguments
        from .layers import use_fast_kernels

        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        arguments = loading_arguments(dtype, torch.device(device).type)
        processor = open_processor(folder)
        model = open_model(RSMoEForConditionalGeneration, folder, **arguments)
        check_tokens(model.config, processor)
        model = model.eval().to(device)
        use_fast_kernels(model, kernels)
        return Checkpoint(name, model, processor, folder)


def find_checkpoint(name: str, progress: Progress = no_progress) -> Path:
    """A checkpoint's folder on this machine, assembled or fetched if need be. Arguments and errors as of `load`."""
    path = Path(name).expanduser()
    if path.is_dir():
        _check_model_type(path / "config.json", name)
        check_folder(path)
        return path
    from ..hub.sources import known_names

    if name in known_names():
        return _assembled(name, progress)
    if path.exists():
        raise RSMoEError(f"{name} is a file: give the checkpoint's folder ({path.parent}?)")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name) or name.startswith("."):
        known = ", ".join(known_names())
        raise RSMoEError(f"there is no checkpoint {name}: give a folder, a Hub name (owner/model) or one of {known}")
    return _from_hub(name, progress)


def revision_of(folder: Path, sha256: str | None = None) -> str:
    """The commit of a checkpoint from the Hub, else 12 digits of its folder's hash (`sha256`, if it is known)."""
    from ..utils.provenance import folder_sha256

    from_hub = folder.parent.name == "snapshots" and re.fullmatch(r"[0-9a-f]{40}", folder.name)
    return folder.name if from_hub else (sha256 or folder_sha256(folder))[:12]


def _check_model_type(config_file: Path, name: str) -> None:
    if not config_file.exists():
        raise RSMoEError(f"{name} has no config.json, so it is no checkpoint: give the folder that holds it")
    settings = read_json(config_file)
    model_type = settings.get("model_type") if isinstance(settings, dict) else None
    if model_type != "rsmoe":
        raise RSMoEError(
            f"{name} is a checkpoint of model type {model_type!r}, expected 'rsmoe': give an RS-MoE checkpoint, such "
            f"as {DEFAULT_MODEL}"
        )


def _assembled(name: str, progress: Progress) -> Path:
    """The checkpoint in the cache, assembled if it is not there, or its recipe or a file's size has changed since. One
    that is whole is not locked: the cache may be read-only."""
    from filelock import FileLock

    from .. import __version__
    from ..hub.sources import HUB_CONFIGS
    from ..utils.files import cache_folder, disk_errors, sha256_of, write_whole
    from ..utils.provenance import CHECKPOINT_FILES

    folder = cache_folder() / "checkpoints" / name
    recipe_file = folder.with_name(f"{name}.recipe")
    recipe_files = sorted(file for file in (HUB_CONFIGS / name).iterdir() if file.is_file())
    recipe = "\n".join([__version__, *(f"{file.name} {sha256_of(file)}" for file in recipe_files)])

    def receipt() -> str:
        files = [file for file in sorted(folder.glob("**/*")) if file.suffix in CHECKPOINT_FILES]
        return "\n".join([recipe, *(f"{file.name} {file.stat().st_size}" for file in files)])

    def is_whole() -> bool:
        return recipe_file.is_file() and recipe_file.read_text(encoding="utf-8") == receipt()

    if is_whole():
        return folder
    with disk_errors("cannot write to the cache", "Free some space or set $RSMOE_CACHE to another folder."):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f".{name}.lock")):
            if not is_whole():
                progress(f"assembling {name}, once")
                from ..hub.assemble import assemble

                assemble(name, folder, overwrite=True, progress=progress)
                write_whole(recipe_file, receipt())
    return folder


def _from_hub(name: str, progress: Progress) -> Path:
    """The repository's files in the Hub's cache; its code is not needed, this package has it."""
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError

    progress(f"fetching {name} from the Hub")
    try:
        _check_model_type(Path(huggingface_hub.hf_hub_download(name, "config.json")), name)
        huggingface_hub.utils.enable_progress_bars()  # the weights may be large: the Hub's bars show how far it is
        folder = Path(huggingface_hub.snapshot_download(name, allow_patterns=_HUB_FILES))
        check_folder(folder)
        return folder
    except RSMoEError:
        raise
    except (OSError, ValueError, HfHubHTTPError) as error:
        raise RSMoEError(
            f"there is no folder {name}, and the Hub did not give a checkpoint of that name ({first_line(error)}): "
            "check the name, the connection and your access"
        ) from error
    finally:
        huggingface_hub.utils.disable_progress_bars()
