"""What kind of file a path names: a scene or an image, which format, on a network or not. Opens no raster.

The format is found by the file's first bytes, so that text which GDAL would take for a recipe of other files, or of
requests to servers, is not followed because of a raster's name.

[our decision] By itself an input is a scene if it is a STAC document, a path of GDAL's (`/vsi...`, `s3://...`), a
`.vrt`, `.img`, `.ntf` or `.zip`, or a TIFF that is no single image: georeferenced and larger than a tile, of other
than 1, 3 or 4 bands, or over Pillow's limit of pixels. Everything else is an image.
"""

import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ..errors_rsmoe import RSMoEError
from ..utils.files import check_input
from ..utils.tiff import TIFF_MAGIC
from .grid import TILE


EXTRA = "geo"  # what reads rasters and STAC items
KINDS = "GeoTIFF, JPEG 2000, PNG, JPEG, WebP, Erdas Imagine, NITF or, by its name, .vrt"
_MAGIC = {
    **dict.fromkeys(TIFF_MAGIC, "GTiff"),
    b"\0\0\0\x0cjP  ": "JP2OpenJPEG",
    b"\xff\x4f\xff\x51": "JP2OpenJPEG",
    b"\x89PNG": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"RIFF": "WEBP",
    b"EHFA_HEADER_TAG": "HFA",
    b"NITF": "NITF",
}
_BY_SUFFIX = {".jp2": "JP2OpenJPEG", ".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
_BY_SUFFIX |= {".img": "HFA", ".ntf": "NITF", ".vrt": "VRT"}
_REMOTE = re.compile(
    r"(^|[+/])((https?|ftp|s3|gs|az|abfss?|adl|oss|swift)://|vsi(curl|s3|gs|az|adls|oss|swift|(web)?hdfs))"
)
_SCHEME = re.compile(r"/vsi|[a-zA-Z][a-zA-Z0-9+.]+://")
_ARCHIVES = {"zip", "tar", "gzip", "7z", "rar"}  # /vsizip/ ...
_SCENE_SUFFIXES = (".vrt", ".img", ".ntf", ".zip")
_WIDTH, _HEIGHT, _SAMPLES_PER_PIXEL, _GEO_KEYS = 256, 257, 277, 34735  # TIFF tags


def is_scene(path: str) -> bool:
    """Whether an input is a scene rather than an image, as far as that can be seen without decoding it."""
    if path.startswith(("http://", "https://", "data:", "file://")):
        return is_stac(path) and path.startswith("http")
    return is_gdal_path(path) or is_stac(path) or path.lower().endswith(_SCENE_SUFFIXES) or _is_large_tiff(path)


def is_stac(path: str) -> bool:
    """Whether a path is that of a STAC document, by its name."""
    return urlsplit(path).path.lower().endswith((".json", ".geojson"))


def is_remote(path: str) -> bool:
    """Whether reading `path` goes over a network, as far as its name tells."""
    return is_gdal_path(path) and bool(_REMOTE.search(path))  # a folder may be called vsicurl


def is_gdal_path(path: str) -> bool:
    """Whether `path` is GDAL's or rasterio's to read (`/vsizip/...`, `s3://...`), and no ordinary file."""
    return bool(_SCHEME.match(path))


def driver_of(path: str) -> str:
    """GDAL's driver for a file, by its first bytes; for what is no ordinary file, by the name's ending.

    Raises:
        RSMoEError: no such file, empty, no regular file, or of no known kind.
    """
    suffix = Path(path.split("?")[0]).suffix.lower()
    if is_gdal_path(path):
        if not is_remote(path) and (suffix == ".vrt" or not _is_in_archive(path)):
            raise RSMoEError(f"{path} is no raster in an archive that can be read here: unpack it, and name the file")
        return _BY_SUFFIX.get(suffix, "GTiff")
    check_input(path, "a raster")
    with open(path, "rb") as file:
        head = file.read(512)
    for magic, driver in _MAGIC.items():
        if head.startswith(magic):
            return driver
    if suffix == ".vrt" and b"<VRTDataset" in head:
        return "VRT"
    raise RSMoEError(f"{path} is not a raster that can be read here: give a {KINDS} (gdal_translate converts others)")


def _is_in_archive(path: str) -> bool:
    """Whether `path` is a member of archives and nothing else: no /vsistdin/, no file that names others."""
    if path.startswith("/vsi"):
        return set(re.findall(r"/vsi(\w+)", path)) <= _ARCHIVES
    return set(urlsplit(path).scheme.split("+")) <= {*_ARCHIVES, "file"} and "/vsi" not in path


def _is_large_tiff(path: str) -> bool:
    """By its tags: nothing is decoded, and what is no TIFF, or a broken one, is the image reader's to refuse."""
    from PIL import Image
    from PIL.TiffImagePlugin import ImageFileDirectory_v2

    from ..images_rsmoe import HeaderReader

    try:
        check_input(path, "an image")
        with open(path, "rb") as file:
            head = file.read(16)
            if head[:4] not in TIFF_MAGIC:
                return False
            tags = ImageFileDirectory_v2(head if 43 in head[2:4] else head[:8])
            header: Any = HeaderReader(file)
            header.seek(tags.next)
            tags.load(header)
        width, height, num_bands = int(tags[_WIDTH]), int(tags[_HEIGHT]), int(tags.get(_SAMPLES_PER_PIXEL, 1))
    except Exception:
        return False
    is_placed = _GEO_KEYS in tags and max(width, height) > TILE
    is_too_large = Image.MAX_IMAGE_PIXELS is not None and width * height > Image.MAX_IMAGE_PIXELS
    return is_placed or is_too_large or num_bands not in (1, 3, 4)
