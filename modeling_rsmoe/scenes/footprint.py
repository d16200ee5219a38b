"""Where a window of a raster lies: its outline in the raster's own coordinates, and on the earth as RFC 7946 wants it.

[our decision] Edges get points in between, since a straight edge of a map projection is a curve in longitude and
latitude. What crosses the antimeridian is cut there (RFC 7946, 3.1.9), and what holds a pole reaches up to it.
"""

import functools
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from ..utils.extras import require
from .grid import Window
from .raster import EXTRA


if TYPE_CHECKING:
    from .raster import Raster

_EDGE_POINTS = 16  # of an edge; the error of a chord falls with its square
DIGITS = 7  # decimals of a degree: about a centimeter


def outline(raster: "Raster", window: Window) -> Any:
    """A window's four corners in the raster's own coordinates.

    Args:
        raster: that the window is of. Without a geotransform its coordinates are columns and negative rows, where
            desktop GIS shows such a raster.
        window: in pixels.

    Returns:
        A shapely polygon.
    """
    shapely = require("shapely", EXTRA)
    return shapely.geometry.polygon.orient(shapely.Polygon(_ring(raster, window, 1)[:-1]))


def footprint(raster: "Raster", window: Window) -> dict[str, Any] | None:
    """A window as a GeoJSON geometry in WGS84, longitude first, outer rings counterclockwise.

    Args:
        raster: that the window is of.
        window: in pixels.

    Returns:
        A Polygon, a MultiPolygon where it crosses the antimeridian, or None: the raster is not placed on the earth, or
        the window lies where its projection has no meaning.
    """
    if raster.crs is None or raster.transform is None:
        return None
    ring = _ring(raster, window, _EDGE_POINTS)  # [points, 2], closed
    to_earth = _to_earth(raster.crs.to_wkt())
    points = np.stack(to_earth.transform(ring[:, 0], ring[:, 1]), axis=1) if to_earth else ring * np.nan
    if not np.isfinite(points).all():
        return None
    points = _continuous(points)
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


def _ring(raster: "Raster", window: Window, edge_points: int) -> np.ndarray:
    """The window's outline, closed, `[4 x edge_points + 1, 2]`."""
    steps = np.arange(edge_points) / edge_points
    column = [steps, np.ones(edge_points), 1 - steps, np.zeros(edge_points)]
    row = [np.zeros(edge_points), steps, np.ones(edge_points), 1 - steps]
    columns = window.column + np.concatenate([*column, [0.0]]) * window.width
    rows = window.row + np.concatenate([*row, [0.0]]) * window.height
    if raster.transform is None:
        return np.stack([columns, -rows], axis=1)
    a, b, c, d, e, f = tuple(raster.transform)[:6]
    return np.stack([a * columns + b * rows + c, d * columns + e * rows + f], axis=1)


def _continuous(points: np.ndarray) -> np.ndarray:
    """Longitudes without the jump at 180 degrees: each is within half a turn of the one before."""
    longitudes = np.rad2deg(np.unwrap(np.deg2rad(points[:, 0])))
    return np.stack([longitudes, points[:, 1]], axis=1)


def _around_pole(points: np.ndarray) -> np.ndarray:
    """A ring that goes once around the earth holds a pole: it is closed along the nearer one."""
    turn = points[-1, 0] - points[0, 0]
    if abs(turn) < 180:
        return points
    pole = math.copysign(90.0, points[:, 1].mean())
    return np.concatenate([points, [[points[-1, 0], pole], [points[0, 0], pole]]])


def _geometry(points: np.ndarray, tolerance: float) -> dict[str, Any] | None:
    """A ring of continuous longitudes as GeoJSON: cut at the antimeridian, without points that change nothing."""
    shapely = require("shapely", EXTRA)
    ring = shapely.make_valid(shapely.Polygon(points).simplify(tolerance))
    west, _, east, _ = ring.bounds
    pieces = []
    for turn in range(math.floor((west + 180) / 360), math.floor((east + 180) / 360) + 1):
        world = shapely.box(-180 + 360 * turn, -90, 180 + 360 * turn, 90)
        pieces.append(shapely.transform(ring.intersection(world), functools.partial(_turned, degrees=-360 * turn)))
    joined = shapely.union_all(pieces)
    polygons = [
        [_coordinates(piece.exterior, True), *(_coordinates(hole, False) for hole in piece.interiors)]
        for piece in getattr(joined, "geoms", [joined])
        if piece.geom_type == "Polygon" and piece.area > 0
    ]
    if len(polygons) > 1:
        return {"type": "MultiPolygon", "coordinates": polygons}
    return {"type": "Polygon", "coordinates": polygons[0]} if polygons else None


def _turned(points: np.ndarray, degrees: float) -> np.ndarray:
    return points + [degrees, 0]


def _coordinates(ring: Any, outer: bool) -> list[list[float]]:
    """Counterclockwise for an outer ring, clockwise for a hole."""
    points = list(ring.coords) if ring.is_ccw == outer else list(ring.coords)[::-1]
    return [[round(x, DIGITS), round(y, DIGITS)] for x, y in points]
