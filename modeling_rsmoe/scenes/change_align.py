"""Two rasters of one place on one grid, by their georeference, so that the tiles of two dates are the same ground.

[our decision] The grid is that of the raster with the larger pixels, so that neither date shows what the other cannot;
of equal pixels the earlier one's. Its pixels stay as they are, the other raster is resampled to them (bilinear; color
indices by the nearest). It holds the whole pixels that both rasters cover. Where one date has no data, both are black:
a masked cloud is no difference.

[our decision] Each date has its own stretch, of the common area: sun, haze, sensors and units differ between dates,
and under a shared stretch one of them would be dark. What brightens or darkens the whole area evenly is lost by it.
"""

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors_rsmoe import RSMoEError
from ..utils.extras import require
from ..utils.rasters.drivers import EXTRA
from ..utils.rasters.raster import Raster, RasterImage
from ..utils.rasters.stretch import percentile_stretch
from .grid import MIN_SIDE, Window


if TYPE_CHECKING:
    from collections.abc import Mapping

Box = tuple[float, float, float, float]  # left, top, right, bottom, in pixels of a raster

_NUM_POINTS = 129  # along the outline of a box
_TOLERANCE = 1e-3  # of a pixel: less is rounding
_MEANT_SCALE = 1.1  # how different pixels must be to be told


def align(before: Raster, after: Raster) -> "tuple[AlignedRaster, AlignedRaster]":
    """Two dates on one grid.

    Args:
        before: the earlier raster, of `open_raster`.
        after: the later one.

    Returns:
        Rasters of one size, coordinate system and transform.

    Raises:
        RSMoEError: a raster is not placed on the earth, they do not overlap, or have no data in common.
    """
    for raster in (before, after):
        if raster.crs is None or raster.transform is None:
            missing = "coordinate system" if raster.crs is None else "geotransform"
            raise RSMoEError(
                f"{raster.name} has no {missing}, and two dates are aligned by their georeference: gdal_edit.py can "
                "add it, or gdalwarp where there are control points"
            )
    reference, other = before, after
    box, scale = _common(before, after)
    if scale > 1 + _TOLERANCE:
        reference, other = after, before
        box, _ = _common(after, before)
        scale = 1 / scale
    window = _whole_pixels(reference, other, box)
    step = type(reference.transform).translation(window.column, window.row)  # type: ignore[union-attr]
    grid = {"crs": reference.crs, "transform": reference.transform * step}  # type: ignore[operator]
    grid |= {"width": window.width, "height": window.height}
    pair = AlignedRaster(before, after, grid), AlignedRaster(after, before, grid)
    pair[0].partner, pair[1].partner = pair[1], pair[0]
    if not pair[0].overview().valid.any():
        raise RSMoEError(f"{before.name} and {after.name} have no pixel that is data on both dates: give other dates")
    for aligned in pair:
        aligned.measure_stretch()
    if 1 / scale > _MEANT_SCALE:
        pair[0].notes.append(
            f"a pixel of {reference.name} is {1 / scale:.1f} times as long as one of {other.name}: both dates are "
            "read with such pixels"
        )
    return pair


class AlignedRaster(Raster):
    """A raster on the grid that it shares with another date's; made by `align`.

    Attributes:
        partner: the other date. What is no data there is none here.
    """

    partner: "AlignedRaster"

    def __init__(self, source: Raster, other: Raster, grid: "Mapping[str, Any]"):
        self.__dict__ |= vars(source)
        self._source, self._grid, self._opened = source, grid, []
        self._turned_axis = 0  # the grid runs as maps do
        self.crs, self.transform, self.width, self.height = (grid[name] for name in grid)
        # It reads both: a run that continues must be of the same two, in this order.
        self.paths = [*source.paths, *other.paths]
        self.notes = [note for note in source.notes if note != source._turned_note]

    def measure_stretch(self) -> None:
        """Stretch by the values of the common area."""
        if self.stretch is not None:
            self.stretch = percentile_stretch(self.sample(), self.dtype)

    def read(self, window: Window | None = None, max_side: int | None = None, average: bool = True) -> RasterImage:
        """As of `Raster`; data is what is data on both dates."""
        from PIL import Image

        own, others = (Raster.read(raster, window, max_side, average) for raster in (self, self.partner))
        valid = own.valid & others.valid
        return RasterImage(Image.fromarray(np.asarray(own.image) * valid[..., None]), valid)

    def close(self) -> None:
        """Let go of the files of both dates; a later `read` opens them again."""
        for raster in (self, self.partner):
            Raster.close(raster)
            raster._source.close()

    @property
    def _datasets(self) -> list[Any]:
        if not self._opened:
            datasets = self._source._datasets
            with self._gdal("be aligned"):
                has_masks = self._source._has_masks()
                # GDAL obeys either the file's masks or our no-data value, and would mix the other with data.
                is_mixed = self._palette is None and not (has_masks and self.nodata is not None)
                resampling, nodata = "bilinear" if is_mixed else "nearest", None if has_masks else self.nodata
                self._opened = [_Warped(dataset, resampling, self._grid, nodata, has_masks) for dataset in datasets]
        return self._opened


class _Warped:
    """A dataset on another grid: rasterio's WarpedVRT, with masks from its alpha band for all types of values."""

    def __init__(
        self, dataset: Any, resampling: str, grid: "Mapping[str, Any]", nodata: float | None, has_masks: bool
    ):
        from rasterio.enums import ColorInterp, Resampling
        from rasterio.vrt import WarpedVRT

        options: dict[str, Any] = {"resampling": Resampling[resampling], **grid}
        if ColorInterp.alpha in dataset.colorinterp:
            self._alpha = dataset.colorinterp.index(ColorInterp.alpha) + 1
            options |= {"src_alpha": self._alpha, "dst_alpha": self._alpha}
        else:
            self._alpha = dataset.count + 1
            options["add_alpha"] = True
        if nodata is not None:  # or it would be mixed with data
            options["src_nodata"] = nodata
        elif not has_masks and np.issubdtype(np.dtype(dataset.dtypes[0]), np.floating):
            options["src_nodata"] = math.nan
        self._vrt, self._declared = WarpedVRT(dataset, **options), dataset.nodata

    def __getattr__(self, name: str) -> Any:
        return getattr(self._vrt, name)

    def read_masks(self, indexes: list[int], out_shape: tuple[int, ...], **arguments: Any) -> np.ndarray:
        """As of rasterio, uint8 `[bands, H, W]`, 255 where there is data: one mask for all bands."""
        alpha = self._vrt.read(self._alpha, out_shape=out_shape[1:], **arguments)
        masks = np.broadcast_to(np.where(alpha > 0, np.uint8(255), np.uint8(0)), out_shape)
        if self._declared is None:
            return masks
        # Alpha says what is data in any band: a band may have none where others do.
        return masks * (self._vrt.read(indexes, out_shape=out_shape, **arguments) != self._declared)


def _common(reference: Raster, other: Raster) -> tuple[Box, float]:
    """What both cover, as a box on `reference`, and how many of its pixels one of `other`'s is long there."""
    whole = (0.0, 0.0, float(other.width), float(other.height))
    points = _outline((0, 0, reference.width, reference.height), reference, other)
    # Not finite: part of it lies where the other's projection has no meaning.
    box = _clip(points, whole) if np.isfinite(points).all() else whole
    points = _outline(box, other, reference)
    found = _clip(points[:, np.isfinite(points).all(axis=0)], (0, 0, reference.width, reference.height))
    column, row = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    x, y = _outline((column - 0.5, row - 0.5, column + 0.5, row + 0.5), other, reference)
    area = abs(np.dot(x[:-1], y[1:]) - np.dot(x[1:], y[:-1])) / 2
    return found, math.sqrt(area) if math.isfinite(area) else 1.0


def _outline(box: Box, source: Raster, target: Raster) -> np.ndarray:
    """Points `[2, points]` along a closed outline in `source`'s pixels, in pixels of `target`."""
    left, top, right, bottom = box
    way = np.linspace(0, 4, _NUM_POINTS)
    columns = np.interp(way, range(5), [left, right, right, left, left])
    rows = np.interp(way, range(5), [top, top, bottom, bottom, top])
    points = _affine(source.transform, columns, rows)
    if source.crs is not None and target.crs is not None and source.crs != target.crs:
        pyproj = require("pyproj", EXTRA)
        try:
            transformer = pyproj.Transformer.from_crs(source.crs.to_wkt(), target.crs.to_wkt(), always_xy=True)
        except pyproj.exceptions.ProjError as error:
            raise RSMoEError(
                f"{source.name} and {target.name} cannot be aligned, for want of a way between their coordinate "
                f"systems ({' '.join(str(error).split())}): gdalwarp both to one system first"
            ) from error
        points = transformer.transform(*points)
    return np.stack(_affine(~target.transform, *points))  # type: ignore[operator]


def _affine(transform: Any, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The points that `transform` moves x and y to, both `[points]`."""
    a, b, c, d, e, f = tuple(transform)[:6]
    with np.errstate(invalid="ignore"):  # of points at infinity
        return a * x + b * y + c, d * x + e * y + f


def _clip(points: np.ndarray, box: Box) -> Box:
    """The bounds of points `[2, points]` within a box; nothing may be left."""
    if not points.size:
        return (0, 0, 0, 0)
    (left, top), (right, bottom) = points.min(axis=1), points.max(axis=1)
    return max(left, box[0]), max(top, box[1]), min(right, box[2]), min(bottom, box[3])


def _whole_pixels(reference: Raster, other: Raster, box: Box) -> Window:
    left, top = (math.ceil(start - _TOLERANCE) for start in box[:2])
    width, height = math.floor(box[2] + _TOLERANCE) - left, math.floor(box[3] + _TOLERANCE) - top
    if min(width, height) <= 0:
        raise RSMoEError(
            f"{reference.name} and {other.name} do not overlap: give two dates of one place (gdalinfo shows where a "
            "raster lies)"
        )
    if min(width, height) < MIN_SIDE:
        raise RSMoEError(
            f"{reference.name} and {other.name} share {width} x {height} pixels, too few to describe: at least "
            f"{MIN_SIDE} x {MIN_SIDE} are needed"
        )
    return Window(left, top, width, height)
