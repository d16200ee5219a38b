"""RS-MoE as a remote source of FiftyOne's model zoo: the four functions that FiftyOne calls."""

from pathlib import Path
from typing import Any

import fiftyone.operators.types as types

from modeling_rsmoe.inference import load
from modeling_rsmoe.inference.checkpoint import find_checkpoint

from .zoo import RSMoEModel


def download_model(model_name: str, model_path: str) -> None:
    """Assemble the checkpoint in the package's cache, where newer weights replace it; FiftyOne gets a note of it."""
    folder = find_checkpoint(model_name)
    Path(model_path).write_text(f"{folder}\n", encoding="utf-8")


def load_model(
    model_name: str,
    model_path: str,
    checkpoint: str | None = None,
    dtype: str | None = None,
    device: str | None = None,
    **settings: Any,
) -> RSMoEModel:
    """Load a model for `apply_model`.

    Args:
        model_name: of the manifest.
        model_path: where `download_model` has left its note.
        checkpoint: a folder or a Hub name in place of the zoo's checkpoint, such as one of your own training.
        dtype, device: as of `modeling_rsmoe.inference.load`.
        settings: as of `RSMoEModel`.
    """
    return RSMoEModel(load(checkpoint or model_name, dtype, device), **settings)


def resolve_input(model_name: str, ctx: Any) -> types.Property:
    """What the App asks for before it applies the model."""
    inputs = types.Object()
    inputs.str("prompt", label="Prompt", description="An instruction or a question. By default a caption is written.")
    inputs.enum("fusion", ["auto", "rerank", "rewrite", "concat"], label="Fusion of the expert texts")
    return types.Property(inputs)


def parse_parameters(model_name: str, ctx: Any, params: dict[str, Any]) -> None:
    """Drop, in place, what was left empty in the App: the model has its own defaults."""
    for name in ("prompt", "fusion"):
        if not params.get(name):
            params.pop(name, None)
