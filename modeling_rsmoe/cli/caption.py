"""`rsmoe caption IMAGE...`: what RS-MoE sees in images and scenes, with every step that leads to each caption."""

from typing import Annotated

import typer

from ..errors_rsmoe import RSMoEError
from ..inference.checkpoint import load
from . import archive, options, scenes, sheets, terminal


def caption(
    images: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="IMAGE",
            help="Image files or URLs; GeoTIFF scenes, or STAC items of them; a folder or list (.txt, .jsonl) of images.",
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
    tile: scenes.TileOption = None,
    overlap: scenes.OverlapOption = None,
    bands: scenes.BandsOption = None,
    asset: scenes.AssetOption = None,
    remote: scenes.RemoteOption = False,
    output: scenes.OutputOption = None,
    map_page: sheets.MapOption = None,
    picture: sheets.PictureOption = None,
    overwrite: scenes.OverwriteOption = False,
    router: options.RouterOption = None,
    compose: options.FusionOption = None,
    max_new_tokens: options.MaxNewTokensOption = None,
    num_beams: options.NumBeamsOption = None,
    batch_size: options.BatchSizeOption = options.BATCH_SIZE,
    model: options.ModelOption = None,
    dtype: options.DtypeOption = None,
    engine: archive.EngineOption = None,
    workers: archive.WorkersOption = None,
    address: archive.AddressOption = None,
    as_json: options.JsonOption = False,
) -> None:
    """Caption images: the router's prompts, what each expert found, the caption.

    Large GeoTIFFs are cut into tiles and captioned tile by tile, with a caption of the whole scene. The images of a
    folder or list go into one Parquet, --output, a row for each.
    """
    if demo == bool(images):
        raise RSMoEError("name one or more images, or give --demo" if not demo else "give images or --demo, not both")
    if instruction is not None and not instruction.strip():
        raise RSMoEError("the instruction is empty: leave --instruction out, or say what to do with the image")
    settings = options.Generation(router, compose, max_new_tokens, num_beams, batch_size, model)
    chosen = archive.make_engine(engine, workers, address)
    options = scenes.SceneOptions(tile, overlap, bands, asset, remote, output, overwrite)
    of_scenes = options.cuts or bool(map_page or picture)
    if archive.is_meant(images or [], engine, as_json, of_scenes):
        if dtype is not None:
            raise RSMoEError(
                "--dtype is not for an archive: write such a checkpoint by rsmoe quantize, and give it as --model"
            )
        with terminal.Steps() as steps:
            archive.caption_archive(images or [], instruction, output, overwrite, settings, chosen, steps)
        return
    options.check()
    shown = sheets.Sheets(map_page, picture, overwrite)
    with terminal.Steps() as steps:
        if demo:
            from ..hub.download import demo_image

            images = [str(demo_image(progress=steps))]
        pictures, large = scenes.split(images or [], options)
        rasters = scenes.open_scenes(large, options, steps)
        shown.expect(len(pictures), rasters, options.sizes())
        kept = shared.check_images(pictures, batch_size, steps)
        loaded = load(model, dtype, progress=steps)
        from ..prompting_rsmoe import DEFAULT_INSTRUCTION  # not at the top: it imports transformers

        text = instruction.strip() if instruction else DEFAULT_INSTRUCTION
        if text == DEFAULT_INSTRUCTION:
            settings = settings.for_captions(loaded.folder)
        for result in shared.look_at(pictures, kept, text, settings, loaded, steps):
            texts = {"caption": result.text}
            terminal.show(result, texts, loaded.name, as_json, steps)
            shown.add_image(result, text, loaded.name)
        if rasters:
            found = scenes.run(rasters, scenes.Asked("caption", text, text), options, settings, loaded, steps)
            scenes.show(found, output, as_json, steps)
            shown.add_scenes(found, steps)
        shown.write(as_json, steps)
