"""`rsmoe export peft|llm|vllm CHECKPOINT`: router and experts in the folders that other libraries read."""

from pathlib import Path
from typing import Annotated, cast

import typer

from ..inference.checkpoint import Checkpoint, load
from ..utils.quiet import quiet_libraries
from . import options, terminal


export = typer.Typer(
    add_completion=False, help="Router and experts in the folders that other libraries read.", no_args_is_help=True
)

CheckpointArgument = Annotated[
    str, typer.Argument(metavar="CHECKPOINT", help="A folder, or a name on the Hub.", show_default=False)
]
OutputOption = Annotated[Path, typer.Option(metavar="DIR", help="A new folder.", show_default=False)]
DtypeOption = Annotated[str, typer.Option(metavar="DTYPE", help="Of the weights: float32, bfloat16 or float16.")]


@export.command()
def peft(checkpoint: CheckpointArgument, output: OutputOption, dtype: DtypeOption = "float32") -> None:
    """PEFT adapters: DIR/base is the base LM, DIR/NAME an adapter of it for the router and each expert."""
    with terminal.Steps() as steps:
        loaded, folder = _load(checkpoint, output, dtype, steps)
        with quiet_libraries():
            from ..hub.adapters import export_peft

            for name in export_peft(loaded.model, loaded.processor, folder):
                steps.print(str(folder / name))


@export.command()
def llm(checkpoint: CheckpointArgument, output: OutputOption, dtype: DtypeOption = "float32") -> None:
    """Plain LLMs: DIR/NAME is the base LM with the router's or an expert's weights merged into it."""
    with terminal.Steps() as steps:
        loaded, folder = _load(checkpoint, output, dtype, steps)
        with quiet_libraries():
            from ..hub.adapters import export_llm

            for name in export_llm(loaded.model, loaded.processor, folder):
                steps.print(str(folder / name))


@export.command()
def vllm(checkpoint: CheckpointArgument, output: OutputOption, dtype: DtypeOption = "bfloat16") -> None:
    """For vLLM: the base LM, an adapter for the router and each expert, a client that makes prompt embeddings of images
    and texts, and the line that starts the server."""
    with terminal.Steps() as steps:
        loaded, folder = _load(checkpoint, output, dtype, steps)
        with quiet_libraries():
            from ..hub.adapters import export_vllm

            steps.print(export_vllm(loaded.model, loaded.processor, folder))


def _load(checkpoint: str, output: Path, dtype: str, steps: terminal.Steps) -> tuple[Checkpoint, Path]:
    with quiet_libraries():
        from ..hub.convert import read_dtype
        from ..hub.folders import check_output

        read_dtype(dtype)
        folder = output.expanduser().absolute()
        check_output(folder, overwrite=False)
    loaded = load(checkpoint, steps, cast(options.Dtype, dtype))
    loaded.model.to("cpu")  # type: ignore[arg-type]  # transformers annotates `to` for a model in place of self
    steps(f"writing {folder}")
    return loaded, folder
