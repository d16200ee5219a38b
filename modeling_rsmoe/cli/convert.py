"""`rsmoe convert MODEL`: the start of a training of rs-moe-1b, -3b or -7b out of an InstructBLIP and an LLM."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from ..utils.quiet import quiet_libraries
from . import options, terminal


def convert(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="rs-moe-1b, rs-moe-3b, rs-moe-7b, or a folder with config.json, generation_config.json and "
            "processor_config.json.",
            show_default=False,
        ),
    ],
    instructblip: Annotated[
        Path,
        typer.Option(
            metavar="DIR",
            help="ViT, Q-Former and queries: an InstructBLIP of transformers, or safetensors with LAVIS's names and "
            "InstructBLIP's qformer_tokenizer/ beside them.",
            show_default=False,
        ),
    ],
    output: options.FolderOption,
    llm: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="The causal LM with its tokenizer.", show_default="the one of InstructBLIP"),
    ] = None,
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"] | None,
        typer.Option(help="Weight dtype.", show_default="config.json's"),
    ] = None,
    overwrite: options.OverwriteOption = False,
) -> None:
    """Write the checkpoint that stage 1 starts from. Downloads nothing; holds one shard of weights at a time."""
    with terminal.Steps() as steps:
        steps("starting")
        with quiet_libraries():
            from ..hub.convert import convert as convert_checkpoint
            from ..hub.folders import folder_line

            folder = convert_checkpoint(
                model, instructblip, llm, output, dtype=dtype, overwrite=overwrite, progress=steps
            )
        steps.print(folder_line(folder))
