"""`rsmoe export peft|llm|vllm MODEL`: router and experts in the folders that other libraries read."""

from pathlib import Path
from typing import Annotated

import typer

from ..inference.checkpoint import load
from ..utils.quiet import quiet_libraries
from . import terminal


export = typer.Typer(
    add_completion=False,
    help="Export router and experts as PEFT adapters, merged LLMs or a vLLM bundle.",
    no_args_is_help=True,
)

ModelArgument = Annotated[
    str, typer.Argument(metavar="MODEL", help="A checkpoint: a folder, or a name on the Hub.", show_default=False)
]
OutputOption = Annotated[Path, typer.Option(metavar="DIR", help="A new folder.", show_default=False)]
DtypeOption = Annotated[str, typer.Option(metavar="DTYPE", help="Weight dtype: float32, bfloat16 or float16.")]


@export.command()
def peft(model: ModelArgument, output: OutputOption, dtype: DtypeOption = "float32") -> None:
    """PEFT adapters: DIR/base is the base LM, DIR/NAME an adapter of it for the router and each expert."""
    _export("export_peft", model, output, dtype)


@export.command()
def llm(model: ModelArgument, output: OutputOption, dtype: DtypeOption = "float32") -> None:
    """Plain LLMs: DIR/NAME is the base LM with the router's or an expert's weights merged into it."""
    _export("export_llm", model, output, dtype)


@export.command()
def vllm(model: ModelArgument, output: OutputOption, dtype: DtypeOption = "bfloat16") -> None:
    """A vLLM bundle: base LM, adapters of router and experts, a client for prompt embeddings, a start script."""
    _export("export_vllm", model, output, dtype)


def _export(function: str, model: str, output: Path, dtype: str) -> None:
    """Load the checkpoint, call a function of `hub.adapters` and print what it returns."""
    with terminal.Steps() as steps:
        with quiet_libraries():
            from ..hub import adapters
            from ..hub.convert import read_dtype
            from ..hub.folders import check_target

            read_dtype(dtype)
            folder = output.expanduser().absolute()
            check_target(folder, overwrite=False)
        loaded = load(model, dtype, progress=steps)
        loaded.model.to("cpu")  # type: ignore[arg-type]  # transformers annotates `to` for a model in place of self
        steps(f"writing {folder}")
        with quiet_libraries():
            result = getattr(adapters, function)(loaded.model, loaded.processor, folder, loaded.folder)
        steps.print(result if isinstance(result, str) else "\n".join(result))
