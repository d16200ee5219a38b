"""Two dates on one grid: pixels are those of the same ground, what is no data on one date is none on either."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rasterio.enums import ColorInterp
from rasterio.transform import from_origin
from rasterio.warp import transform, transform_bounds

from modeling_rsmoe import RSMoEError
from modeling_rsmoe.scenes.change_align import AlignedRaster, align
from modeling_rsmoe.scenes.raster import open_raster
from tests.scenes.rasters import UTM, noise, write_raster


WEST, NORTH = 400_000, 5_800_000


def at(column: float, row: float, size: float = 10) -> dict[str, Any]:
    """A place as of `UTM`, so many pixels of 10 m to the east and south."""
    return {"crs": "EPSG:32633", "transform": from_origin(WEST + 10 * column, NORTH - 10 * row, size, size)}


def aligned(before: Path, after: Path, **options: Any) -> tuple[AlignedRaster, AlignedRaster]:
    return align(open_raster(before, **options), open_raster(after, **options))


def pixels(raster: AlignedRaster) -> np.ndarray:
    """`[H, W, 3]`."""
    return np.asarray(raster.read().image)


def test_the_common_pixels_are_exactly_these(tmp_path: Path) -> None:
    values = noise(3, 50, 60, "uint8", 255)
    before = write_raster(tmp_path / "before.tif", values[:, :40, :45], **UTM)
    after = write_raster(tmp_path / "after.tif", values[:, 5:, 12:], **at(12, 5))
    first, second = aligned(before, after)
    assert (first.width, first.height) == (second.width, second.height) == (33, 35)
    assert first.transform == second.transform == at(12, 5)["transform"] and first.crs == "EPSG:32633"
    expected = np.moveaxis(values[:, 5:40, 12:45], 0, -1)
    assert (pixels(first) == expected).all() and (pixels(second) == expected).all()
    assert first.read().valid.all() and first.notes == []


def test_a_part_of_a_pixel_is_no_pixel(tmp_path: Path) -> None:
    """As NAIP: the later date lies a fifth of a pixel to the north-west."""
    before = write_raster(tmp_path / "before.tif", noise(3, 40, 60, "uint8", 255), **UTM)
    ramp = np.broadcast_to(np.arange(60, dtype="uint8") * 4, (3, 39, 60))
    first, second = aligned(before, write_raster(tmp_path / "after.tif", ramp, **at(-0.2, 0.2)))
    assert (first.width, first.height) == (59, 38) and first.transform == at(0, 1)["transform"]
    assert (abs(pixels(second)[:, 1:-1, 0] - (np.arange(1, 58) * 4 + 0.8)) <= 0.5).all(), "between its neighbors"


def test_the_larger_pixels_are_taken(tmp_path: Path) -> None:
    """The finer date is averaged, whichever it is; no detail is made up."""
    fine = write_raster(tmp_path / "fine.tif", np.full((3, 80, 80), 90, "uint8"), **at(0, 0, 5))
    values = noise(3, 30, 30, "uint8", 255)
    coarse = write_raster(tmp_path / "coarse.tif", values, **at(5, 5))
    for pair in (aligned(fine, coarse), aligned(coarse, fine)[::-1]):
        first, second = pair
        assert (first.width, first.height) == (30, 30) and second.transform == at(5, 5)["transform"]
        assert (pixels(first)[:30, :30] == 90).all() and (pixels(second) == np.moveaxis(values, 0, -1)).all()
    (note,) = [*pair[0].notes, *pair[1].notes]
    assert "a pixel of" in note and "coarse.tif is 2.0 times as long as one of" in note


def test_another_coordinate_system(tmp_path: Path) -> None:
    """The later date is in degrees: a bright square is found where it lies in meters."""
    before = write_raster(tmp_path / "before.tif", np.full((3, 100, 100), 50, "uint8"), **UTM)
    west, south, east, north = transform_bounds(UTM["crs"], "EPSG:4326", WEST, NORTH - 1000, WEST + 1000, NORTH)
    step = (north - south) / 110
    width, height = int((east - west) / step) + 20, 130
    values = np.full((3, height, width), 40, "uint8")
    place = from_origin(west - 10 * step, north + 10 * step, step, step)
    corners = transform(UTM["crs"], "EPSG:4326", [WEST + 300, WEST + 600], [NORTH - 300, NORTH - 600])
    left, right = (int(round((x - place.c) / step)) for x in corners[0])
    top, bottom = (int(round((place.f - y) / step)) for y in corners[1])
    values[:, top:bottom, left:right] = 240
    after = write_raster(tmp_path / "after.tif", values, crs="EPSG:4326", transform=place)
    first, second = aligned(before, after)
    assert first.crs == "EPSG:32633" and (first.width, first.height) == (100, 100)
    assert first.transform == UTM["transform"]
    rows, columns = np.nonzero(pixels(second)[..., 0] > 140)
    assert np.abs([rows.min() - 30, rows.max() - 59, columns.min() - 30, columns.max() - 59]).max() <= 2
    assert (pixels(second)[35:55, 35:55] == 240).all() and (pixels(first) == 50).all()


@pytest.mark.parametrize("kind", ["nodata", "nan", "alpha"])
def test_no_data_of_one_date_is_black_on_both(tmp_path: Path, kind: str) -> None:
    values = noise(3, 40, 60, "float32" if kind == "nan" else "uint8", 200)
    options: dict[str, Any] = {}
    if kind == "alpha":
        options["photometric"] = "rgb"
        values = np.concatenate([values, np.full((1, 40, 60), 255, "uint8")])
        values[3, :10, :20] = 0
    else:
        values[:, :10, :20] = np.nan if kind == "nan" else 0
        options |= {} if kind == "nan" else {"nodata": 0}
    holes = write_raster(tmp_path / "holes.tif", values, **UTM, **options)
    if kind == "alpha":
        import rasterio

        with rasterio.open(holes, "r+") as file:
            file.colorinterp = [ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.alpha]
    whole = write_raster(tmp_path / "whole.tif", noise(3, 40, 60, "uint8", 200), **UTM)
    expected = np.ones((40, 60), bool)
    expected[:10, :20] = False
    for pair in (aligned(holes, whole), aligned(whole, holes)):
        for raster in pair:
            read = raster.read()
            assert (read.valid == expected).all() and (np.asarray(read.image)[~expected] == 0).all()
            assert (np.asarray(read.image)[expected].any(axis=-1)).mean() > 0.9


@pytest.mark.parametrize("shift", [0, 0.5])
@pytest.mark.parametrize("kind", ["nodata", "mask", "float mask"])
def test_a_no_data_value_beside_what_the_file_declares(tmp_path: Path, kind: str, shift: float) -> None:
    """Neither is data, or mixed with it."""
    import rasterio

    values = noise(3, 40, 60, "float32" if "float" in kind else "int16", 200)
    values[:, :10], values[:, 30:] = -9999, 500
    holes = write_raster(tmp_path / "holes.tif", values, **UTM, **({"nodata": -9999} if kind == "nodata" else {}))
    if kind != "nodata":
        with rasterio.open(holes, "r+") as file:
            file.write_mask((values[0] != -9999) * np.uint8(255))
    whole = write_raster(tmp_path / "whole.tif", noise(3, 40, 60, "uint8", 200), **at(shift, shift))
    _, second = aligned(whole, holes, nodata=500)
    valid = second.read().valid
    assert valid.mean() == pytest.approx(0.5, abs=0.03) and not valid[:9].any() and not valid[31:].any()
    assert second.stretch and min(second.stretch.low) >= 1 and max(second.stretch.high) <= 200


def test_no_data_of_one_band_is_not_stretched(tmp_path: Path) -> None:
    values = noise(3, 40, 60, "int16", 200)
    values[0, :20] = -9999
    holes = write_raster(tmp_path / "holes.tif", values, **UTM, nodata=-9999)
    single = open_raster(holes)
    first, _ = aligned(holes, write_raster(tmp_path / "whole.tif", noise(3, 40, 60, "uint8", 200), **UTM))
    assert first.stretch == single.stretch and (pixels(first) == np.asarray(single.read().image)).all()


def test_each_date_has_its_own_stretch_of_the_common_area(tmp_path: Path) -> None:
    values = noise(3, 40, 60, high=1000)
    values[:, :, 40:] += 20_000  # outside of the later date
    before = write_raster(tmp_path / "before.tif", values, **UTM)
    after = write_raster(tmp_path / "after.tif", values[:, :, :40] * 3 + 500, **UTM)
    first, second = aligned(before, after)
    assert first.stretch and second.stretch and first.stretch.high[0] < 1000
    assert second.stretch.high == pytest.approx([3 * high + 500 for high in first.stretch.high])
    assert np.abs(pixels(first).astype(int) - pixels(second)).max() <= 1, "as bright on both dates"


def test_files_open_again(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "a.tif", noise(3, 40, 60, "uint8", 255), **UTM)
    first, second = aligned(path, path)
    expected = pixels(first)
    first.close()
    assert not first._opened and not second._opened
    assert (pixels(second) == expected).all()


def test_what_is_refused(tmp_path: Path) -> None:
    def raster(name: str, values: np.ndarray | None = None, **place: Any) -> Path:
        return write_raster(tmp_path / name, noise(3, 40, 60, "uint8") if values is None else values, **place)

    here = raster("here.tif", **UTM)
    empty = np.zeros((3, 40, 60), "uint8")
    empty[:, :, 50:] = 9
    for other, message in (
        (raster("far.tif", **at(60, 0)), "do not overlap: give two dates of one place"),
        (raster("zone.tif", **{**UTM, "crs": "EPSG:32733"}), "do not overlap"),
        (raster("edge.tif", **at(55, 0)), "share 5 x 40 pixels, too few"),
        (raster("lost.tif"), "has no coordinate system, and two dates are aligned by their georeference"),
        (raster("bare.tif", crs="EPSG:32633"), "has no geotransform"),
        (raster("empty.tif", empty, nodata=0, **at(-50, 0)), None),
        (raster("none.tif", empty, nodata=0, **at(10, 0)), "have no pixel that is data on both dates"),
    ):
        for pair in ((here, other), (other, here)):
            if message is None:
                assert aligned(*pair)[0].width == 10
                continue
            with pytest.raises(RSMoEError, match=message):
                aligned(*pair)
