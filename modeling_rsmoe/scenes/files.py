"""What kind of file a path names, and whether reading it goes over a network. Opens no raster.

The kind is told by the file's first bytes, so that text which GDAL would take for a recipe of other files, or of
requests to servers, is not followed because of a raster's name.
"""

import os
import re
from pathlib import Path

from ..errors_rsmoe import RSMoEError


KINDS = "GeoTIFF, JPEG 2000, PNG, JPEG, WebP, Erdas Imagine, NITF or, by its name, .vrt"
_MAGIC = {
    b"II*\0": "GTiff",
    b"MM\0*": "GTiff",
    b"II+\0": "GTiff",
    b"MM\0+": "GTiff",
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


def is_remote(path: str) -> bool:
    """Whether reading `path` goes over a network, as far as its name tells."""
    return bool(_REMOTE.search(path))


def is_gdal_path(path: str) -> bool:
    """Whether `path` is GDAL's or rasterio's to read (`/vsizip/...`, `s3://...`), and no ordinary file."""
    return bool(_SCHEME.match(path))


def driver_of(path: str) -> str:
    """GDAL's driver for a file, by its first bytes; for what is no ordinary file by the name's ending.

    Raises:
        RSMoEError: no such file, empty, a folder, or of no known kind.
    """
    suffix = Path(path.split("?")[0]).suffix.lower()
    if is_gdal_path(path):
        return _BY_SUFFIX.get(suffix, "GTiff")
    _check_file(path)
    with open(path, "rb") as file:
        head = file.read(512)
    for magic, driver in _MAGIC.items():
        if head.startswith(magic):
            return driver
    if suffix == ".vrt" and b"<VRTDataset" in head:
        return "VRT"
    raise RSMoEError(f"{path} is not a raster that can be read here: give a {KINDS} (gdal_translate converts others)")


def _check_file(path: str) -> None:
    try:
        if not os.path.exists(path):
            raise RSMoEError(f"there is no file {path}: check the path (paths are relative to {os.getcwd()})")
        if os.path.isdir(path):
            raise RSMoEError(f"{path} is a folder, not a raster: name the files in it")
        if not os.path.isfile(path):
            raise RSMoEError(f"{path} is not a regular file: save the raster to a file first")
        if os.path.getsize(path) == 0:
            raise RSMoEError(f"{path} is empty (0 bytes): copy or download it again")
        with open(path, "rb"):
            pass
    except OSError as error:
        raise RSMoEError(f"{path} cannot be opened ({error.strerror}): check its permissions") from error
