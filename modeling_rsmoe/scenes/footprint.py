"""Where a window of a raster lies: its outline in the raster's own coordinates, and on the earth as RFC 7946 wants it.

[our decision] Edges get points in between, since a straight edge of a map projection is a curve in longitude and
latitude. What crosses the antimeridian is cut there (RFC 7946, 3.1.9), and what holds a pole reaches up to it.
A raster with ground control points in place of a geotransform is placed by a thin plate spline through them, in a
projection around their middle, where neither antimeridian nor pole is a jump.
"""

import atexit
import functools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from ..utils.extras import require
from ..utils.rasters.drivers import EXTRA
from .grid import Window


if TYPE_CHECKING:
    from ..utils.rasters.raster import Raster

_NUM_POINTS = 64  # of a ring; the error of a chord falls with its square
_DIGITS = 7  # decimals of a degree: about a centimeter
_MAX_GROUND_POINTS = 500  # evenly picked from more: a spline's cost grows with their cube

Place = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]  # to longitudes and latitudes


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
    to_earth: Place | None = None
    if raster.ground_points:
        to_earth = _by_points(raster)
    elif raster.crs and raster.transform:
        to_earth = _to_earth(raster.crs.to_wkt())
    if not to_earth:
        return None
    shape = outline(raster, window)
    ring = require("shapely", EXTRA).segmentize(shape, shape.length / _NUM_POINTS).exterior.xy
    points = np.stack(to_earth(*map(np.asarray, ring)), axis=1)  # [points, 2], closed
    if not np.isfinite(points).all():
        return None
    points[:, 0] = np.unwrap(points[:, 0], period=360)  # no jump at 180 degrees
    half_a_pixel = np.ptp(points, axis=0).min() / max(window.width, window.height) / 2
    return _geometry(_around_pole(points), half_a_pixel)


@functools.lru_cache(maxsize=16)
def _to_earth(crs: str) -> Place | None:
    """From a coordinate system, as WKT, to longitude and latitude; None if there is no way."""
    pyproj = require("pyproj", EXTRA)
    try:
        return pyproj.Transformer.from_crs(crs, "EPSG:4326", always_xy=True).transform
    except pyproj.exceptions.ProjError:
        return None


@functools.lru_cache(maxsize=16)
def _by_points(raster: "Raster") -> Place | None:
    """From columns and negative rows (`outline`) to longitude and latitude; None if the ground points do not tell."""
    rasterio, pyproj = require("rasterio", EXTRA), require("pyproj", EXTRA)
    gdal_error = require("rasterio._err", EXTRA).CPLE_BaseError
    points, crs = raster.ground_points or ([], None)
    to_earth = crs and _to_earth(crs.to_wkt())
    if not to_earth:
        return None
    points = points[:: -(-len(points) // _MAX_GROUND_POINTS)]
    longitudes, latitudes = to_earth(*np.array([(point.x, point.y) for point in points]).T)
    middle = len(points) // 2
    try:
        around = f"+proj=aeqd +lon_0={longitudes[middle]} +lat_0={latitudes[middle]} +datum=WGS84"
        flat = pyproj.Transformer.from_crs("EPSG:4326", around, always_xy=True)
        places = zip(points, *flat.transform(longitudes, latitudes, errcheck=True), strict=True)
        flat_points = [rasterio.control.GroundControlPoint(point.row, point.col, x, y) for point, x, y in places]
        spline = rasterio.transform.GCPTransformer(flat_points, tps=True)
    except (pyproj.exceptions.ProjError, rasterio.errors.RasterioError, gdal_error, ValueError):
        return None

    def place(columns: np.ndarray, negative_rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        x, y = spline.xy(-negative_rows, columns, offset="ul")
        return flat.transform(np.asarray(x), np.asarray(y), direction="INVERSE")

    return place


atexit.register(_by_points.cache_clear)  # GDAL frees no spline after its modules are gone


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
    joined = shapely.get_parts(shapely.union_all(pieces, grid_size=10.0**-_DIGITS))  # rounded later, it may be invalid
    polygons = [piece for piece in joined if piece.geom_type == "Polygon" and piece.area > 0]
    if not polygons:
        return None
    shape = polygons[0] if len(polygons) == 1 else shapely.MultiPolygon(polygons)
    rounded = shapely.transform(shapely.orient_polygons(shape), functools.partial(np.round, decimals=_DIGITS))
    return rounded.__geo_interface__
