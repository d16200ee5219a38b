"""What is shown of an image or a scene: its picture, and what was said about it and about its tiles.

`map` makes a page of sheets, `picture` an image. An ordinary image is a sheet of one tile.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .describe import Tile
from .footprint import footprint
from .grid import Window


if TYPE_CHECKING:
    from PIL import Image

    from .outputs import SceneResult
    from .raster import Raster


@dataclass(frozen=True)
class Sheet:
    """
    Attributes:
        name: of the image or scene, as the user gave it.
        model: the checkpoint's name.
        asked: the instruction or question.
        text: of the whole.
        picture: RGB, of at most `side` pixels (see `of_scene`); width, height: of the raster, in pixels.
        tiles: with windows in pixels of the raster.
        places: each tile's centre as (longitude, latitude), or None where the raster is not placed on the earth.
        skipped: tiles that are mostly without data.
    """

    name: str
    model: str
    asked: str
    text: str
    picture: "Image.Image"
    width: int
    height: int
    tiles: Sequence[Tile]
    places: Sequence[tuple[float, float] | None]
    skipped: int = 0


def of_scene(result: "SceneResult", side: int) -> Sheet:
    """
    Args:
        side: the longer one of the picture, in pixels.

    Raises:
        RSMoEError: the raster can no longer be read.
    """
    raster = result.raster
    try:
        picture = raster.overview(side).image
    finally:
        raster.close()
    return Sheet(
        name=raster.name,
        model=result.run.model,
        asked=result.run.asked,
        text=result.text,
        picture=picture,
        width=raster.width,
        height=raster.height,
        tiles=result.tiles,
        places=[_place(raster, tile.window) for tile in result.tiles],
        skipped=result.skipped,
    )


def of_image(
    name: str,
    picture: "Image.Image",
    side: int,
    *,
    model: str,
    asked: str,
    text: str,
    router_prompts: dict[str, str],
    parts: dict[str, str],
) -> Sheet:
    """An image that was looked at as a whole; arguments as of `Sheet` and `Tile`."""
    width, height = picture.size
    small = picture.copy()
    small.thumbnail((side, side))
    tile = Tile(0, Window(0, 0, width, height), 1.0, text, router_prompts, parts)
    return Sheet(name, model, asked, text, small, width, height, [tile], [None])


def _place(raster: "Raster", window: Window) -> tuple[float, float] | None:
    """The window's middle pixel on the earth."""
    middle = Window(window.column + window.width // 2, window.row + window.height // 2, 1, 1)
    geometry = footprint(raster, middle)
    if geometry is None or geometry["type"] != "Polygon":
        return None
    longitude, latitude = geometry["coordinates"][0][0][:2]
    return longitude, latitude
