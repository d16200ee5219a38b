"""Ground control points of a raster: the transform that fits them, and the same points of a raster that is turned."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..extras import require
from .drivers import EXTRA


def approximate_transform(points: Sequence[Any], crs: Any) -> Any:
    """The affine transform that fits best; None of points on a line.

    Args:
        points: rasterio's.
        crs: their coordinate system.
    """
    columns, rows, x, y = np.array([(point.col, point.row, point.x, point.y) for point in points]).T
    if crs.is_geographic and np.ptp(x) > 180:  # from both sides of the antimeridian
        x = x % 360
    terms = np.stack([columns, rows, np.ones_like(x)], axis=1)
    if not np.isfinite([*x, *y]).all() or np.linalg.matrix_rank(terms) < 3:
        return None
    (a, b, c), (d, e, f) = np.linalg.lstsq(terms, np.stack([x, y], axis=1), rcond=None)[0].T
    return require("rasterio", EXTRA).Affine(a, b, c, d, e, f)


def turn_points(points: Sequence[Any], turned: Any) -> list[Any]:
    """The points at the pixels to which `turned`, affine, moves them."""
    make = require("rasterio.control", EXTRA).GroundControlPoint
    places = [(point, turned * (point.col, point.row)) for point in points]
    return [make(row, column, point.x, point.y) for point, (column, row) in places]
