"""What is shown of an image or a scene: the image itself, its texts and its tiles.

`map` makes a page of views, `figure` a PNG. An ordinary image is a view of one tile.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from .describe import Tile
from .footprint import footprint
from .grid import Window


if TYPE_CHECKING:
    from PIL import Image

    from ..inference import Prediction
    from ..utils.rasters.raster import Raster
    from .change_result import ChangeResult
    from .change_words import Difference
    from .result import SceneResult


@dataclass(frozen=True)
class View:
    """An image or a scene to show.

    Attributes:
        name: of the image's or scene's file, without its folders: a page is shown to others.
        model: the checkpoint's name.
        instruction: the user's instruction or question.
        text: of the whole.
        image: RGB, made small (see `view_scene`).
        width: of the image or raster, in pixels.
        height: of the image or raster, in pixels.
        tiles: with windows in pixels of the raster.
        places: each tile's center as (longitude, latitude), or None where the raster is not placed on the earth.
        num_skipped: tiles that are mostly without data.
        after: of two dates the later one, with the same tiles; the view itself is the earlier one.
        differences: of two dates, of each tile.
    """

    name: str
    model: str
    instruction: str
    text: str
    image: "Image.Image"
    width: int
    height: int
    tiles: Sequence[Tile]
    places: Sequence[tuple[float, float] | None]
    num_skipped: int = 0
    after: "View | None" = None
    differences: "Sequence[Difference]" = ()


def view_change(result: "ChangeResult", side: int) -> View:
    """The view of two dates."""
    before, after = view_scene(result.before, side), view_scene(result.after, side)
    return replace(before, after=after, differences=[tile.difference for tile in result.tiles])


def view_scene(result: "SceneResult", side: int) -> View:
    """The view of a scene, with its tiles: its raster is read again, at most `side` pixels large, and closed."""
    with result.raster as raster:
        image = raster.overview(side).image
    return View(
        name=_file_name(raster.name),
        model=_model_name(result.task.model),
        instruction=result.task.user_text,
        text=result.text,
        image=image,
        width=raster.width,
        height=raster.height,
        tiles=result.tiles,
        places=[_center(raster, tile.window) for tile in result.tiles],
        num_skipped=result.num_skipped,
    )


def view_image(
    name: str, image: "Image.Image", prediction: "Prediction", instruction: str, model: str, side: int
) -> View:
    """The view of an image that was described as one, made smaller where it is larger than `side` pixels."""
    width, height = image.size
    small = image.copy()
    small.thumbnail((side, side))
    texts = (prediction.text, prediction.router_prompts, prediction.expert_texts)
    sure = (prediction.confidence, prediction.expert_confidences)
    tile = Tile(0, Window(0, 0, width, height), 1.0, *texts, None, prediction.sentences, *sure)
    names = _file_name(name), _model_name(model)
    return View(*names, instruction, prediction.text, small, width, height, [tile], [None])


def _file_name(name: str) -> str:
    return name.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1] or name


def _model_name(model: str) -> str:
    """A folder's name without its place; a name on the Hub as it is."""
    return os.path.basename(os.path.abspath(model)) if os.path.isdir(model) else model


def _center(raster: "Raster", window: Window) -> tuple[float, float] | None:
    """Where the window's middle pixel lies on the earth."""
    middle = Window(window.column + window.width // 2, window.row + window.height // 2, 1, 1)
    geometry = footprint(raster, middle)
    if geometry is None or geometry["type"] != "Polygon":
        return None
    longitude, latitude = geometry["coordinates"][0][0][:2]
    return longitude, latitude
