"""Rasters in a `.zip`, as they are downloaded: found by their names, and read by GDAL without unpacking."""

import zipfile

from ...errors_rsmoe import RSMoEError
from ..files import check_input
from .drivers import is_gdal_path, is_remote


_RASTERS = (".tif", ".tiff", ".jp2", ".img", ".ntf", ".png", ".jpg", ".jpeg", ".webp")


def in_zip(path: str) -> str:
    """Of a `.zip` the path of the one raster in it, as GDAL reads it (`/vsizip/...`); any other path as it is.

    Raises:
        RSMoEError: it holds no raster or several.
    """
    if is_gdal_path(path) or not path.lower().endswith(".zip"):
        return path
    check_input(path, "a raster")
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.lower().endswith(_RASTERS)]
        names = [name for name in names if not is_remote(f"/vsizip/{path}/{name}")]  # called vsicurl/...
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise RSMoEError(f"{path} is no .zip that can be read ({error}): copy or download it again") from error
    if len(names) == 1:
        return f"/vsizip/{path}/{names[0]}"
    if not names:
        raise RSMoEError(f"{path} holds no raster ({', '.join(_RASTERS)}): give one that does")
    raise RSMoEError(f"{path} holds {len(names)} rasters: name those that you want, as /vsizip/{path}/{names[0]}")
