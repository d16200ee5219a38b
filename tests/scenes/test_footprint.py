"""Where windows lie: RFC 7946's rules, at the edges of the map too."""

from types import SimpleNamespace
from typing import Any

import pytest
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.transform import Affine, from_origin
from shapely.geometry import Point, shape

from modeling_rsmoe.scenes.footprint import footprint, outline
from modeling_rsmoe.scenes.grid import Window
from tests.scenes.rasters import rotated


WHOLE = Window(0, 0, 100, 100)


def raster(crs: str | None, transform: Affine | None) -> Any:
    return SimpleNamespace(crs=None if crs is None else CRS.from_string(crs), transform=transform, ground_points=None)


def rings(geometry: dict[str, Any]) -> list[list[list[float]]]:
    polygons = [geometry["coordinates"]] if geometry["type"] == "Polygon" else geometry["coordinates"]
    return [ring for polygon in polygons for ring in polygon]


PLACES = {
    "utm": ("EPSG:32618", from_origin(500_000, 4_000_000, 10, 10)),
    "web mercator": ("EPSG:3857", from_origin(0, 0, 10, 10)),
    "rotated": ("EPSG:32633", rotated(30)),
    "south up": ("EPSG:32618", Affine(10, 0, 500_000, 0, 10, 4_000_000)),
    "antimeridian": ("EPSG:32660", from_origin(800_000, 100_000, 1000, 1000)),
    "over 180": ("EPSG:4326", from_origin(170, 10, 0.2, 0.2)),
    "earth": ("EPSG:4326", from_origin(-180, 90, 3.6, 1.8)),
    "earth from 0 to 360": ("EPSG:4326", from_origin(0, 90, 3.6, 1.8)),
    "north pole": ("EPSG:3413", from_origin(-500_000, 500_000, 10_000, 10_000)),
    "south pole": ("EPSG:3031", from_origin(-500_000, 500_000, 10_000, 10_000)),
}


@pytest.mark.parametrize("place", PLACES)
def test_every_footprint_is_as_rfc_7946_wants_it(place: str) -> None:
    geometry = footprint(raster(*PLACES[place]), WHOLE)
    assert geometry is not None and geometry["type"] in ("Polygon", "MultiPolygon")
    form = shape(geometry)
    assert form.is_valid and form.area > 0
    for ring in rings(geometry):
        assert ring[0] == ring[-1] and len(ring) >= 4
        assert all(-180 <= x <= 180 and -90 <= y <= 90 for x, y in ring)
        doubled = sum((b[0] - a[0]) * (b[1] + a[1]) for a, b in zip(ring, ring[1:]))
        assert doubled < 0, "an outer ring runs counterclockwise"


def test_longitude_comes_first_and_corners_are_right() -> None:
    geometry = footprint(raster("EPSG:4326", from_origin(7, 50, 0.01, 0.02)), Window(10, 20, 30, 40))
    assert geometry is not None and shape(geometry).bounds == pytest.approx((7.1, 48.8, 7.4, 49.6))
    assert len(rings(geometry)[0]) == 5, "no points that change nothing"


def test_a_curve_gets_points_and_a_straight_edge_none() -> None:
    curved = footprint(raster("EPSG:3413", from_origin(-2_000_000, -1_000_000, 20_000, 10_000)), WHOLE)
    assert curved is not None and len(rings(curved)[0]) > 10


def test_what_crosses_the_antimeridian_is_cut() -> None:
    geometry = footprint(raster(*PLACES["over 180"]), WHOLE)
    assert geometry is not None and geometry["type"] == "MultiPolygon"
    parts = sorted(part.bounds for part in shape(geometry).geoms)
    assert parts == [pytest.approx((-180, -10, -170, 10)), pytest.approx((170, -10, 180, 10))]
    assert shape(footprint(raster(*PLACES["earth from 0 to 360"]), WHOLE)).bounds == (-180, -90, 180, 90)


def test_what_holds_a_pole_reaches_it() -> None:
    north = shape(footprint(raster(*PLACES["north pole"]), WHOLE))
    assert all(north.contains(Point(longitude, 89.9)) for longitude in (-179, -90, 0, 90, 179))
    assert not north.contains(Point(0, 80))
    south = shape(footprint(raster(*PLACES["south pole"]), WHOLE))
    assert south.contains(Point(10, -89.9)) and south.bounds[1] == -90


def test_what_is_not_on_the_earth_has_no_footprint() -> None:
    for place in [(None, None), ("EPSG:32633", None), (None, from_origin(0, 0, 1, 1))]:
        assert footprint(raster(*place), WHOLE) is None
    assert footprint(raster("EPSG:32618", from_origin(5e9, 4e9, 10, 10)), WHOLE) is None  # nowhere in its projection


class Hashable(SimpleNamespace):
    __hash__ = object.__hash__  # type: ignore[assignment]


def by_points(crs: str, transform: Affine, side: int = 100, step: int = 25) -> Any:
    """A raster that ground control points place where `transform` would."""
    places = [(column, row) for row in range(0, side + 1, step) for column in range(0, side + 1, step)]
    points = [GroundControlPoint(row, column, *(transform @ (column, row))) for column, row in places]
    return Hashable(crs=None, transform=None, ground_points=(points, CRS.from_string(crs)))


@pytest.mark.parametrize(
    ("crs", "transform"),
    [
        ("EPSG:4326", from_origin(7, 50, 0.01, 0.02)),
        ("EPSG:4326", Affine(0.01, 0.003, 7, 0.002, -0.01, 50)),  # as an orbit lies
        ("EPSG:32633", rotated(30)),
        PLACES["antimeridian"],
        PLACES["north pole"],
        PLACES["south pole"],
    ],
)
def test_ground_control_points_place_a_raster(crs: str, transform: Affine) -> None:
    for window in (WHOLE, Window(10, 20, 30, 40)):
        exact, found = (footprint(one, window) for one in (raster(crs, transform), by_points(crs, transform)))
        assert exact is not None and found is not None and shape(found).is_valid
        assert exact["type"] == found["type"]
        assert shape(exact).symmetric_difference(shape(found)).area < 0.01 * shape(exact).area


def test_ground_control_points_from_both_sides_of_the_antimeridian() -> None:
    """Longitudes from 179 to -179 are two degrees, not 358."""
    placed = by_points("EPSG:4326", from_origin(179, 10, 0.02, 0.02))
    for point in placed.ground_points[0]:
        point.x = (point.x + 180) % 360 - 180
    geometry = footprint(placed, WHOLE)
    assert geometry is not None and geometry["type"] == "MultiPolygon"
    assert sorted(part.bounds for part in shape(geometry).geoms) == [
        pytest.approx((-180, 8, -179, 10), abs=0.01),
        pytest.approx((179, 8, 180, 10), abs=0.01),
    ]


def test_ground_control_points_that_place_nothing() -> None:
    for crs, transform in [
        ("EPSG:4326", Affine(0, 0, 7, 0, 0, 50)),  # all in one place
        ("EPSG:4326", Affine(0, 0, 7000, 0, 0, 500)),
        ('LOCAL_CS["a site",UNIT["metre",1]]', from_origin(7, 50, 1, 1)),
    ]:
        assert footprint(by_points(crs, transform), WHOLE) is None


def test_outlines_are_exact_in_the_raster_s_own_coordinates() -> None:
    form = outline(raster("EPSG:32633", from_origin(400_000, 5_800_000, 10, 10)), Window(10, 20, 30, 40))
    assert form.bounds == (400_100, 5_799_400, 400_400, 5_799_800) and form.exterior.is_ccw
    assert outline(raster("EPSG:32633", rotated(30)), WHOLE).area == pytest.approx(1_000_000)
    assert outline(raster(None, None), Window(1, 2, 3, 4)).bounds == (1, -6, 4, -2)  # rows downwards
