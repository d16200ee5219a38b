"""`rsmoe ask IMAGE QUESTION`: a question about an image or a scene, answered in a word or phrase."""

from typing import Annotated

import typer

from ..errors_rsmoe import RSMoEError
from ..inference.checkpoint import load
from . import archive, options, scenes, terminal


def ask(
    image: Annotated[
        str,
        typer.Argument(
            metavar="IMAGE",
            help="An image file or URL; a GeoTIFF scene, or STAC items; features of images that `rsmoe encode` wrote.",
            show_default=False,
        ),
    ],
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="The question, in quotes.", show_default=False)],
    tile: scenes.TileOption = None,
    overlap: scenes.OverlapOption = None,
    bands: scenes.BandsOption = None,
    asset: scenes.AssetOption = None,
    remote: scenes.RemoteOption = False,
    output: scenes.OutputOption = None,
    overwrite: scenes.OverwriteOption = False,
    router: options.RouterOption = None,
    compose: options.FusionOption = "rewrite",
    max_new_tokens: options.MaxNewTokensOption = None,
    num_beams: options.NumBeamsOption = None,
    batch_size: options.BatchSizeOption = options.BATCH_SIZE,
    model: options.ModelOption = None,
    dtype: options.DtypeOption = None,
    as_json: options.JsonOption = False,
) -> None:
    """Answer a question about an image in a word or phrase.

    The experts look at the image under the question; the base LM reads what they found and answers. Every tile of a
    large GeoTIFF is asked, and the answer says how the tiles' answers were combined. Of features, every image is asked.
    """
    question = question.strip()
    if not question:
        raise RSMoEError('the question is empty: ask for example "Is there a road?"')
    settings = options.Generation(router, compose, max_new_tokens, num_beams, batch_size, model)
    options = scenes.SceneOptions(tile, overlap, bands, asset, remote, output, overwrite)
    if archive.holds_features(image, options.given):
        with terminal.Steps() as steps:
            archive.ask_features(image, question, settings, dtype, as_json, steps)
        return
    options.check()
    with terminal.Steps() as steps:
        pictures, large = scenes.split([image], options)
        rasters = scenes.open_scenes(large, options, steps)
        kept = shared.check_images(pictures, batch_size, steps)
        loaded = load(model, dtype, progress=steps)
        from ..prompting_rsmoe import question_instruction  # not at the top: it imports transformers

        text = question_instruction(question)
        for result in shared.look_at(pictures, kept, text, settings, loaded, steps):
            texts = {"question": question, "answer": result.text}
            terminal.show(result, texts, loaded.name, as_json, steps)
        if rasters:
            found = scenes.run(rasters, scenes.Asked("answer", question, text), options, settings, loaded, steps)
            scenes.show(found, output, as_json, steps)
