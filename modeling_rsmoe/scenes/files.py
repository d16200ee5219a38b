"""Whether a path names a scene or an image. Opens no raster.

[our decision] By itself an input is a scene if it is a STAC document, a path of GDAL's (`/vsi...`, `s3://...`), a
`.vrt`, `.img`, `.ntf` or `.zip`, or a TIFF that is no single image: georeferenced and larger than a tile, of other
than 1, 3 or 4 bands, or over Pillow's limit of pixels. Everything else is an image.
"""

from urllib.parse import urlsplit

from ..utils.files import check_input
from ..utils.rasters.drivers import is_gdal_path
from ..utils.tiff import GEO_KEYS, HEIGHT, SAMPLES_PER_PIXEL, WIDTH, read_tags
from .grid import TILE


_SCENE_SUFFIXES = (".vrt", ".img", ".ntf", ".zip")


def is_scene(path: str) -> bool:
    """Whether an input is a scene rather than an image, as far as that can be seen without decoding it."""
    if path.startswith(("http://", "https://", "data:", "file://")):
        return is_stac(path) and path.startswith("http")
    return is_gdal_path(path) or is_stac(path) or path.lower().endswith(_SCENE_SUFFIXES) or _is_large_tiff(path)


def is_stac(path: str) -> bool:
    """Whether a path is that of a STAC document, by its name."""
    return urlsplit(path).path.lower().endswith((".json", ".geojson"))


def _is_large_tiff(path: str) -> bool:
    """By its tags: nothing is decoded, and what is no TIFF, or a broken one, is the image reader's to refuse."""
    from PIL import Image

    try:
        check_input(path, "an image")
        with open(path, "rb") as file:
            tags = read_tags(file)
        width, height, num_bands = int(tags[WIDTH]), int(tags[HEIGHT]), int(tags.get(SAMPLES_PER_PIXEL, 1))
    except Exception:
        return False
    is_placed = GEO_KEYS in tags and max(width, height) > TILE
    is_too_large = Image.MAX_IMAGE_PIXELS is not None and width * height > Image.MAX_IMAGE_PIXELS
    return is_placed or is_too_large or num_bands not in (1, 3, 4)
