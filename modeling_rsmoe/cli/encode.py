"""`rsmoe encode DIR_OR_LIST --output FILE`: features of images, kept for later questions."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from ..utils.files import check_outputs
from . import archive, options, terminal


def encode(
    images: Annotated[
        list[str],
        typer.Argument(
            metavar="DIR_OR_LIST",
            help="A folder of images; a list: .txt with a path or URL on each line, or .jsonl with `image`; or images.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path, typer.Option(metavar="FILE", help="NAME.parquet, or a folder for several files of about 1 GiB.")
    ],
    dtype: Annotated[
        Literal["float16", "float32"], typer.Option(metavar="TYPE", help="In which features are kept.")
    ] = "float16",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the output file.")] = False,
    batch_size: options.BatchSizeOption = 32,
    model: options.ModelOption = None,
    engine: archive.EngineOption = None,
    workers: archive.WorkersOption = None,
    address: archive.AddressOption = None,
) -> None:
    """Keep the features of images, so that later questions need not look at them again: `rsmoe ask FILE QUESTION`.

    A row for each image; an image that cannot be read has its error there. The same command goes on with a stopped run.
    """
    with terminal.Steps() as steps:
        chosen = archive.make_engine(engine, workers, address)
        steps("finding the images")
        from ..collection.describers import Encoder
        from ..collection.items import find_items
        from ..collection.store import check_output

        check_output(output, overwrite)
        check_outputs(output)
        items = find_items(images)
        checkpoint = archive.checkpoint_of(model, steps, archive.load_encoder_alone)
        from ..inference.encoder import encoder_sha256

        digest = encoder_sha256(*checkpoint.load(checkpoint.find()))
        archive.write_archive(Encoder(checkpoint, digest, dtype), items, output, chosen, batch_size, steps, overwrite)
