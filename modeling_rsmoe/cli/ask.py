"""`rsmoe ask IMAGE QUESTION`: a question about an image or a scene, answered in a word or phrase."""

from typing import Annotated

import typer

from ..errors_rsmoe import RSMoEError
from ..inference.checkpoint import load
from . import collection, images, options, scenes, terminal


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
    fusion: options.FusionOption = None,
    max_new_tokens: options.MaxNewTokensOption = None,
    num_beams: options.NumBeamsOption = None,
    batch_size: options.BatchSizeOption = options.BATCH_SIZE,
    model: options.ModelOption = None,
    dtype: options.DtypeOption = None,
    as_json: options.JsonOption = False,
) -> None:
    """Answer a question about an image in a word or phrase.

    The experts read the image under the question; the base LM reads what they wrote and answers. Every tile of a large
    GeoTIFF is asked, and the answer says how the tiles' answers were combined. Of features, every image is asked.
    """
    question = question.strip()
    if not question:
        raise RSMoEError('the question is empty: ask for example "Is there a road?"')
    generation = options.Generation(router, fusion, max_new_tokens, num_beams, batch_size, model)
    scene_options = scenes.SceneOptions(tile, overlap, bands, asset, remote, output, overwrite)
    if collection.holds_features(image, scene_options.is_given):
        with terminal.Steps() as steps:
            collection.ask_features(image, question, generation, dtype, as_json, steps)
        return
    scene_options.check()
    with terminal.Steps() as steps:
        names, scene_names = scenes.split([image], scene_options)
        rasters = scenes.open_rasters(scene_names, scene_options, steps)
        decoded = images.check_images(names, batch_size, steps)
        checkpoint = load(model, dtype, progress=steps)
        from ..inference import Predictor  # not at the top: it imports torch
        from ..prompting_rsmoe import question_instruction

        predictor = Predictor(checkpoint.model, checkpoint.processor, generation.settings())
        instruction = question_instruction(question)
        for result in images.describe_images(names, decoded, instruction, predictor, batch_size, steps):
            texts = {"question": question, "answer": result.prediction.text}
            terminal.show(result, texts, checkpoint.name, as_json, steps)
        if rasters:
            results = scenes.describe(
                rasters, predictor, checkpoint, instruction, question, scene_options, batch_size, steps
            )
            scenes.show(results, output, as_json, steps)
