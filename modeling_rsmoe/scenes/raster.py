"""The public place of `open_raster`; how it reads stands in `utils.rasters`."""

from ..utils.rasters.raster import Raster, RasterImage, open_raster


__all__ = ["Raster", "RasterImage", "open_raster"]
