"""Files that visitors upload, as images that went through the image encoder once. Knows nothing of the page."""

import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..errors_rsmoe import RSMoEError
from ..utils.images import read_image
from ..utils.tiff import TIFF_MAGIC


if TYPE_CHECKING:
    from PIL import Image

    from ..inference import Predictor

MAX_PREVIEW_SIDE = 1024


@dataclass(frozen=True)
class EncodedImage:
    """An image with its features, for any number of predictions about it."""

    name: str  # of its file
    size: tuple[int, int]  # width and height of the file's image, in pixels
    preview: "Image.Image"  # RGB, of at most `MAX_PREVIEW_SIDE` pixels on a side
    embeds: torch.Tensor  # [1, patches, vision width], of `Predictor.encode`


def encode_upload(predictor: "Predictor", file: Path, bands: str = "") -> EncodedImage:
    """Read the file of an image or GeoTIFF, a large one at the preview's size, and encode it. `bands` of a GeoTIFF are
    `4,3,2` or `red,green,blue`, by default as the file says."""
    try:
        image, size = _read(file, bands)
    except RSMoEError as error:  # where uploads lie on this machine is not shown
        raise RSMoEError(str(error).replace(f"{file.parent}{os.sep}", "")) from error
    embeds = predictor.encode([image])
    image.thumbnail((MAX_PREVIEW_SIDE, MAX_PREVIEW_SIDE))
    return EncodedImage(file.name, size, image, embeds)


def _read(file: Path, bands: str) -> tuple["Image.Image", tuple[int, int]]:
    """The image, and the file's width and height.

    Only what begins as a TIFF is given to GDAL: other formats of its may name further files, which are not the
    visitor's.
    """
    with file.open("rb") as opened:
        is_tiff = opened.read(4) in TIFF_MAGIC
    if not is_tiff or not importlib.util.find_spec("rasterio"):
        image = read_image(file)
        return image, image.size
    from ..utils.rasters.bands import parse_bands
    from ..utils.rasters.raster import open_raster

    with open_raster(file, parse_bands(bands) if bands.strip() else None, name=file.name, alone=True) as raster:
        return raster.overview(MAX_PREVIEW_SIDE).image, (raster.width, raster.height)
