"""`rsmoe quantize MODEL`: the same checkpoint with smaller weights, which loads faster and needs less memory."""

from typing import Annotated

import typer

from ..errors_rsmoe import RSMoEError
from ..inference.checkpoint import load
from ..utils.quiet import quiet_libraries
from . import options, terminal


def quantize(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A checkpoint: a folder, or a name on the Hub.", show_default=False)
    ],
    output: options.FolderOption,
    dtype: options.DtypeOption = None,
    overwrite: options.OverwriteOption = False,
) -> None:
    """Write a checkpoint in half precision, or in 8 or 4 bits. Router, experts and Q-Former stay in float32."""
    folder = output.expanduser().absolute()
    with terminal.Steps() as steps:
        if dtype is None:
            raise RSMoEError("give --dtype: bfloat16, float16, int8, int8-dynamic or nf4")
        with quiet_libraries():
            from ..hub.folders import check_target, folder_line
            from ..hub.quantize import save_checkpoint

            check_target(folder, overwrite)
        loaded = load(model, dtype, progress=steps)
        steps(f"writing {folder}")
        with quiet_libraries():
            save_checkpoint(loaded.model, loaded.processor, folder, overwrite, loaded.folder)
        steps.print(folder_line(folder))
