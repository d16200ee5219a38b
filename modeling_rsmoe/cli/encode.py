"""`rsmoe encode DIR_OR_LIST --output FILE`: features of images, stored for later questions."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from ..collection.describers import FeatureEncoder
from ..utils.rasters.bands import parse_bands
from ..utils.rasters.options import RasterOptions
from . import collection, options, scenes, terminal


def encode(
    images: Annotated[
        list[str],
        typer.Argument(
            metavar="DIR_OR_LIST",
            help="A folder of images; a list: .txt with a path or URL on each line, or .jsonl with `image`; or "
            "images.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path, typer.Option(metavar="FILE", help="NAME.parquet, or a folder for several files of about 1 GiB.")
    ],
    dtype: Annotated[
        Literal["float16", "float32"], typer.Option(metavar="TYPE", help="Dtype of the stored features.")
    ] = "float16",
    bands: scenes.BandsOption = None,
    nodata: scenes.NodataOption = None,
    stretch: collection.StretchOption = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the output file.")] = False,
    batch_size: options.BatchSizeOption = 32,
    model: options.ModelOption = None,
    engine: collection.EngineOption = None,
    workers: collection.WorkersOption = None,
    address: collection.AddressOption = None,
) -> None:
    """Store the features of images, so that later questions need no images: `rsmoe ask FILE QUESTION`.

    A row for each image; an image that cannot be read has its error there. The same command continues a stopped run.
    """
    with terminal.Steps() as steps:
        chosen_engine = collection.make_engine(engine, workers, address)
        found = collection.find_new(images, output, overwrite, steps)
        raster_options = RasterOptions(None if bands is None else parse_bands(bands), nodata)
        raster_options = collection.with_stretch(raster_options, stretch, found, output, steps)
        source = collection.make_source(model, steps, collection.load_encoder_alone)
        from ..inference.encoder import encoder_sha256

        describer = FeatureEncoder(source, encoder_sha256(*source.load(source.find())), dtype, raster_options)
        collection.describe(describer, found, output, chosen_engine, batch_size, steps, overwrite)
