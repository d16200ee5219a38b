"""`rsmoe caption IMAGE...`: captions of images and scenes, with every step that leads to them."""

from typing import Annotated

import typer

from ..errors_rsmoe import RSMoEError
from ..inference.checkpoint import DEFAULT_MODEL, find_checkpoint
from ..prompting_rsmoe import DEFAULT_INSTRUCTION, DETAIL_INSTRUCTION
from ..scenes.result import SceneTask
from . import collection, options, scenes, terminal, views
from .images import Inputs


def caption(
    images: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="IMAGE",
            help="Image files or URLs; GeoTIFF scenes, or STAC items of them; a folder or list (.txt, .jsonl) of "
            "images or, with --tile, of scenes.",
            show_default=False,
        ),
    ] = None,
    demo: Annotated[
        bool, typer.Option("--demo", help="Caption a real aerial tile that a Python package carries.")
    ] = False,
    instruction: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="What to do with the image.", show_default="Describe the image."),
    ] = None,
    detail: options.DetailOption = False,
    tile: scenes.TileOption = None,
    overlap: scenes.OverlapOption = None,
    bands: scenes.BandsOption = None,
    nodata: scenes.NodataOption = None,
    stretch: collection.StretchOption = None,
    asset: scenes.AssetOption = None,
    remote: scenes.RemoteOption = False,
    output: scenes.OutputOption = None,
    map_page: views.MapOption = None,
    figure: views.FigureOption = None,
    overwrite: scenes.OverwriteOption = False,
    change: scenes.ChangeOption = False,
    router: options.RouterOption = None,
    fusion: options.FusionOption = None,
    max_new_tokens: options.MaxNewTokensOption = None,
    num_beams: options.NumBeamsOption = None,
    min_confidence: options.MinConfidenceOption = None,
    batch_size: options.BatchSizeOption = options.BATCH_SIZE,
    model: options.ModelOption = None,
    dtype: options.DtypeOption = None,
    engine: collection.EngineOption = None,
    workers: collection.WorkersOption = None,
    address: collection.AddressOption = None,
    as_json: options.JsonOption = False,
) -> None:
    """Caption images: the router's prompts, what each expert found, the caption.

    Large GeoTIFFs are cut into tiles and captioned tile by tile, with a caption of the whole scene. The images of a
    folder or list, or with --tile the tiles of all its scenes, go into one Parquet, --output, a row for each.
    """
    if demo == bool(images):
        raise RSMoEError("name one or more images, or give --demo" if not demo else "give images or --demo, not both")
    if instruction is not None and not instruction.strip():
        raise RSMoEError("the instruction is empty: leave --instruction out, or say what to do with the image")
    if detail and instruction is not None:
        raise RSMoEError("give --detail or --instruction, not both: --detail is an instruction")
    if detail and change:
        raise RSMoEError("--change compares captions of one sentence: leave --detail out")
    if change and min_confidence is not None:
        raise RSMoEError("--change compares all captions, sure or not: leave --min-confidence out")
    generation = options.Generation(router, fusion, max_new_tokens, num_beams, min_confidence, batch_size, model)
    chosen_engine = collection.make_engine(engine, workers, address)
    scene_options = scenes.SceneOptions(tile, overlap, bands, asset, remote, output, overwrite, change, nodata)
    text = DETAIL_INSTRUCTION if detail else instruction.strip() if instruction else DEFAULT_INSTRUCTION
    if collection.are_collection(images or [], engine):
        if dtype is not None:
            raise RSMoEError(
                "--dtype is not for a collection: write such a checkpoint by rsmoe quantize, and give it as --model"
            )
        refused = {"json": as_json, "map": map_page, "figure": figure, "change": change}
        are_scenes = collection.check_options(images or [], scene_options, stretch, **refused)
        with terminal.Steps() as steps:
            collection.caption_collection(
                images or [], text, are_scenes, scene_options, stretch, generation, chosen_engine, steps
            )
        return
    if stretch is not None:
        raise RSMoEError("--stretch is of a folder or list of images: leave it out")
    scene_options.check()
    shown = views.Views(map_page, figure, overwrite)
    with terminal.Steps() as steps:
        if demo:
            from ..hub.download import demo_image

            # First: what is missing is told before 55 MB are fetched.
            find_checkpoint(generation.model or DEFAULT_MODEL, steps)
            images = [str(demo_image(progress=steps))]
        inputs = Inputs(images or [], generation, dtype, scene_options, shown, as_json, steps)
        inputs.describe([SceneTask(text, None)])
