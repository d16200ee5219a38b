"""What can go wrong when a checkpoint's folder is loaded, in one line."""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from ..errors_rsmoe import RSMoEError, first_line


REMEDY = "assemble or download it again"


@contextmanager
def loading_errors(what: str, folder: str | Path) -> Iterator[None]:
    """Within: what transformers and safetensors raise about missing or damaged files of `what` ("the checkpoint") becomes
    an `RSMoEError`."""
    from safetensors import SafetensorError

    try:
        yield
    except RSMoEError:
        raise
    except ImportError as error:  # of a checkpoint that is quantised
        raise RSMoEError(
            f'{what} {folder} needs a library that is not installed ({error}): pip install "rsmoe[quantize]"'
        ) from error
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
        raise RSMoEError(f"{what} {folder} cannot be loaded ({first_line(error)}): {REMEDY}") from error


def check_complete(info: Mapping[str, Collection[str]], folder: str | Path) -> None:
    """Refuse a checkpoint that lacks a weight: transformers fills what is missing with random numbers. `info` is from
    `from_pretrained(..., output_loading_info=True)`."""
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise RSMoEError(f"the checkpoint {folder} lacks {len(missing)} weights, such as {missing[0]}: {REMEDY}")
