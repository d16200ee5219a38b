"""Rasters made by code, for tests: values, georeferencing and damage."""

import struct
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio.transform import Affine, from_origin


UTM = {"crs": "EPSG:32633", "transform": from_origin(400_000, 5_800_000, 10, 10)}


def noise(bands: int, height: int, width: int, dtype: str = "uint16", high: int = 4000, seed: int = 0) -> np.ndarray:
    """`[bands, H, W]` of integers from 1 to `high`."""
    return np.random.default_rng(seed).integers(1, high, (bands, height, width)).astype(dtype)


def write_raster(path: Path, values: np.ndarray, descriptions: list[str] | None = None, **options: Any) -> Path:
    """A GeoTIFF of `[bands, H, W]`; options are rasterio's."""
    bands, height, width = values.shape
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a missing geotransform
        with rasterio.open(
            path, "w", driver="GTiff", width=width, height=height, count=bands, dtype=values.dtype, **options
        ) as raster:
            raster.write(values)
            if descriptions:
                raster.descriptions = descriptions
    return path


def patch_tags(source: Path, target: Path, tags: dict[int, int]) -> Path:
    """A classic little-endian TIFF whose header says something else."""
    content = bytearray(source.read_bytes())
    (start,) = struct.unpack_from("<I", content, 4)
    (count,) = struct.unpack_from("<H", content, start)
    for entry in range(start + 2, start + 2 + 12 * count, 12):
        (tag,) = struct.unpack_from("<H", content, entry)
        if tag in tags:
            struct.pack_into("<HHII", content, entry, tag, 4, 1, tags[tag])
    target.write_bytes(content)
    return target


def rotated(degrees: float) -> Affine:
    """A geotransform turned against north."""
    return Affine.translation(400_000, 5_800_000) * Affine.rotation(degrees) * Affine.scale(10, -10)
