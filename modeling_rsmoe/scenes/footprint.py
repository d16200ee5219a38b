"""Where a window of a raster lies: its outline in the raster's own coordinates, and on the earth as RFC 7946 wants it.

[our decision] Edges get points in between, since a straight edge of a map projection is a curve in longitude and
latitude. What crosses the antimeridian is cut there (RFC 7946, 3.1.9), and what holds a pole reaches up to it.
"""

import functools
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from ..utils.extras import require
from ..utils.rasters.raster import EXTRA
from .grid import Window


if TYPE_CHECKING:
    from ..utils.rasters.raster import Raster

_NUM_POINTS = 64  # of a ring; the error of a chord falls with its square
_DIGITS = 7  # decimals of a degree: about a centimeter


def outline(raster: "Raster", window: Window) -> Any:
    """A window as a shapely polygon in the raster's own coordinates.

    Without a geotransform these are columns and negative rows, where desktop GIS shows such a raster.
    """
    shapely = require("shapely", EXTRA)
    left, top, width, height = window
    a, b, c, d, e, f = tuple(raster.transform or (1, 0, 0, 0, -1, 0))[:6]
    box = shapely.box(left, top, left + width, top + height)
    return shapely.orient_polygons(require("shapely.affinity", EXTRA).affine_transform(box, (a, b, d, e, c, f)))


def footprint(raster: "Raster", window: Window) -> dict[str, Any] | None:
    """A window as a GeoJSON geometry in WGS84, longitude first, outer rings counterclockwise.

    Returns:
        A Polygon, a MultiPolygon where it crosses the antimeridian, or None: the raster is not placed on the earth, or
        the window lies where its projection has no meaning.
    """
    to_earth = raster.crs and raster.transform and _to_earth(raster.crs.to_wkt())
    if not to_earth:
        return None
    shape = outline(raster, window)
    ring = require("shapely", EXTRA).segmentize(shape, shape.length / _NUM_POINTS).exterior.xy
    points = np.stack(to_earth.transform(*map(np.asarray, ring)), axis=1)  # [points, 2], closed
    if not np.isfinite(points).all():
        return None
    points[:, 0] = np.unwrap(points[:, 0], period=360)  # no jump at 180 degrees
    half_a_pixel = np.ptp(points, axis=0).min() / max(window.width, window.height) / 2
    return _geometry(_around_pole(points), half_a_pixel)


@functools.lru_cache(maxsize=16)
def _to_earth(crs: str) -> Any:
    """From a coordinate system, as WKT, to longitude and latitude; None if there is no way."""
    pyproj = require("pyproj", EXTRA)
    try:
        return pyproj.Transformer.from_crs(crs, "EPSG:4326", always_xy=True)
    except pyproj.exceptions.ProjError:
        return None


def _around_pole(points: np.ndarray) -> np.ndarray:
    """A ring that goes once around the earth holds a pole: it is closed along the nearer one."""
    if abs(points[-1, 0] - points[0, 0]) < 180:
        return points
    pole = math.copysign(90.0, points[:, 1].mean())
    return np.concatenate([points, [[points[-1, 0], pole], [points[0, 0], pole]]])


def _geometry(points: np.ndarray, tolerance: float) -> dict[str, Any] | None:
    """A ring of continuous longitudes as GeoJSON: cut at the antimeridian, without points that change nothing."""
    shapely, affinity = require("shapely", EXTRA), require("shapely.affinity", EXTRA)
    ring = shapely.make_valid(shapely.Polygon(points).simplify(tolerance))
    west, _, east, _ = ring.bounds
    pieces = []
    for turn in range(math.floor((west + 180) / 360), math.floor((east + 180) / 360) + 1):
        world = shapely.box(-180 + 360 * turn, -90, 180 + 360 * turn, 90)
        pieces.append(affinity.translate(ring.intersection(world), -360 * turn))
    joined = shapely.get_parts(shapely.union_all(pieces))
    polygons = [piece for piece in joined if piece.geom_type == "Polygon" and piece.area > 0]
    if not polygons:
        return None
    shape = polygons[0] if len(polygons) == 1 else shapely.MultiPolygon(polygons)
    rounded = shapely.transform(shapely.orient_polygons(shape), functools.partial(np.round, decimals=_DIGITS))
    return rounded.__geo_interface__
