"""What kind of file a path names: which driver of GDAL's reads it, on a network or not. Opens no raster.

The driver is found by the file's first bytes, so that text which GDAL would take for a recipe of other files, or of
requests to servers, is not followed because of a raster's name.
"""

import re
from pathlib import Path
from urllib.parse import urlsplit

from ...errors_rsmoe import RSMoEError
from ..files import check_input
from ..tiff import TIFF_MAGIC


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
