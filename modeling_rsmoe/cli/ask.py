"""`rsmoe ask IMAGE QUESTION`: a question about an image or a scene, answered in a word or phrase."""

from typing import Annotated

import typer

from ..collection.features import holds_features
from ..errors_rsmoe import RSMoEError
from ..prompting_rsmoe import question_instruction
from ..scenes.result import SceneTask
from . import collection, options, scenes, terminal
from .images import describe_inputs
from .views import Views


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
    nodata: scenes.NodataOption = None,
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
    scene_options = scenes.SceneOptions(tile, overlap, bands, asset, remote, output, overwrite, nodata)
    with terminal.Steps() as steps:
        if not holds_features(image):
            scene_options.check()
            task, no_views = SceneTask(question_instruction(question), question), Views(None, None, False)
            describe_inputs([image], task, generation, dtype, scene_options, no_views, as_json, steps)
        elif scene_options.is_given:
            raise RSMoEError(
                "--tile, --overlap, --bands, --nodata, --asset and --output are of scenes; answers about features are "
                "printed: leave them out, and add --json for programs"
            )
        else:
            collection.ask_features(image, question, generation, dtype, as_json, steps)
