"""A whole raster as one RGB image, strip by strip."""

import math
import re
import tempfile
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from ...errors_rsmoe import RSMoEError
from ..extras import require
from .drivers import EXTRA, driver_of
from .options import AS_IN_THE_FILE, RasterOptions
from .raster import open_raster
from .stretch import Stretch, percentile_stretch
from .window import Window


if TYPE_CHECKING:
    from PIL import Image

_DRIVERS = ("GTiff", "JP2OpenJPEG", "HFA", "NITF", "VRT")  # of which Pillow cannot read all, or any
_MAX_MEASURED, _NUM_MEASURED_VALUES = 256, 4096  # images, and values of a band of each
_HEADER_BYTES = 2**16
# Of the box "ihdr" the number of bands and their depth (255: they differ); of a bare codestream the first one's depth;
# of the box "colr" the color space.
_JPEG_2000_BANDS = re.compile(rb"ihdr.{8}(..)(.)|\A\xff\x4f\xff\x51.{36}()(.)", re.DOTALL)
_JPEG_2000_GRAY = re.compile(rb"colr\x01..\0\0\0\x11", re.DOTALL)
_STRIP_PIXELS, _MAX_STRIPS = 2**18, 16  # more strips would unpack large blocks again and again


def is_raster(opened: Any) -> bool:
    """Whether an image that Pillow opened, and did not decode yet, is a TIFF or JPEG 2000 of other than 8 bits."""
    from ...images_rsmoe import is_wide

    if not getattr(opened, "tile", None):
        return False
    if opened.format == "JPEG2000":
        return opened.mode.startswith("I") or _is_wide_jpeg_2000(opened.fp)
    return opened.format == "TIFF" and (opened.mode in ("I", "F") or opened.mode.startswith("I;") or is_wide(opened))


def is_raster_file(path: str) -> bool:
    """Whether a file that Pillow does not know is a raster, by its first bytes."""
    try:
        return driver_of(path) in _DRIVERS
    except RSMoEError:
        return False


def read_raster(source: str | BytesIO, name: str, options: RasterOptions = AS_IN_THE_FILE) -> "Image.Image":
    """A raster as an RGB image of its full size; `info["notes"]` has what the user should know.

    Args:
        source: a file, or its bytes: these are somebody else's, and may name no file.
        name: what errors call it.
        options: bands, no-data value and stretch.

    Raises:
        RSMoEError: as of `open_raster`; over Pillow's limit of pixels; rasterio is not installed.
    """
    try:
        require("rasterio", EXTRA)
    except RSMoEError as error:
        raise RSMoEError(f"{name} has bands or numbers that Pillow cannot read: {error}") from error
    if isinstance(source, str):
        return _read(source, name, options)
    with tempfile.TemporaryDirectory(prefix="rsmoe-") as folder:
        file = Path(folder, "image")
        file.write_bytes(source.getbuffer())
        try:
            return _read(str(file), name, options, alone=True)
        except RSMoEError as error:
            raise RSMoEError(str(error).replace(str(file), name)) from error


def measure_stretch(paths: Sequence[str], options: RasterOptions) -> Stretch | None:
    """One stretch for many images, from values of at most `_MAX_MEASURED` of them, evenly spread.

    What cannot be read does not count, nor what has another number of bands than the first.

    Args:
        paths: of images; those of 8 bits are passed over.
        options: bands and no-data value.

    Returns:
        The stretch, or None if no raster of other than 8 bits is among them.
    """
    pools: list[list[np.ndarray]] = []
    dtypes = []
    for path in paths[:: max(1, math.ceil(len(paths) / _MAX_MEASURED))]:
        try:
            with open_raster(path, options.bands, nodata=options.nodata, as_image=True) as raster:
                samples = [] if raster.stretch is None else raster.sample()
                dtypes += [raster.dtype] * bool(samples)
        except RSMoEError:
            continue
        pools = pools or [[] for _ in samples]
        if len(samples) == len(pools):
            for pool, sample in zip(pools, samples, strict=True):
                pool.append(sample[:: max(1, len(sample) // _NUM_MEASURED_VALUES)])
    return percentile_stretch([np.concatenate(pool) for pool in pools], np.result_type(*dtypes)) if pools else None


def _read(path: str, name: str, options: RasterOptions, alone: bool = False) -> "Image.Image":
    from PIL import Image

    bands, nodata, stretch = options.bands, options.nodata, options.stretch
    with open_raster(path, bands, name, nodata=nodata, stretch=stretch, as_image=True, alone=alone) as raster:
        image = Image.new("RGB", (raster.width, raster.height))
        rows = max(_STRIP_PIXELS // raster.width, math.ceil(raster.height / _MAX_STRIPS))
        for top in range(0, raster.height, rows):
            strip = Window(0, top, raster.width, min(rows, raster.height - top))
            image.paste(raster.read(strip).image, (0, top))
        if raster.notes:
            image.info["notes"] = raster.notes
    return image


def _is_wide_jpeg_2000(file: BinaryIO) -> bool:
    """Whether a header says more than 8 bits, or three bands that are called gray, as GDAL writes bands without
    colors; Pillow decodes neither."""
    position = file.tell()
    file.seek(0)
    head = file.read(_HEADER_BYTES)
    file.seek(position)
    if (found := _JPEG_2000_BANDS.search(head)) is None:
        return False
    num_bands, depth = int.from_bytes(found[1] or b""), (found[2] or found[4])[0] % 128 + 1
    return depth > 8 or (num_bands > 2 and bool(_JPEG_2000_GRAY.search(head)))
