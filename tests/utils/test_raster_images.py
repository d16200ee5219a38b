"""Chips of 16 bits, floats and many bands as images: read as scenes are, at every door."""

import sys
from pathlib import Path

import numpy as np
import pytest

from modeling_rsmoe import RSMoEError
from modeling_rsmoe.utils.images import read_image
from modeling_rsmoe.utils.rasters.image import measure_stretch
from modeling_rsmoe.utils.rasters.options import RasterOptions
from modeling_rsmoe.utils.rasters.raster import open_raster
from tests.scenes.rasters import UTM, noise, write_raster


def shown(source: Path | bytes, **options) -> np.ndarray:
    return np.asarray(read_image(source, raster_options=RasterOptions(**options)))


def as_scene(path: Path, **options) -> np.ndarray:
    with open_raster(path, **options) as raster:
        return np.asarray(raster.read().image)


@pytest.mark.parametrize(("bands", "dtype"), [(3, "uint16"), (3, "float32"), (1, "int16"), (3, "float64")])
@pytest.mark.parametrize("interleave", ["band", "pixel"])
def test_a_chip_looks_as_it_does_as_a_scene(tmp_path: Path, bands: int, dtype: str, interleave: str) -> None:
    path = write_raster(tmp_path / "a.tif", noise(bands, 40, 60, dtype), interleave=interleave, **UTM)
    for source in (path, path.read_bytes()):
        assert np.array_equal(shown(source), as_scene(path))


def test_bands_are_chosen(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "a.tif", noise(13, 40, 60), **UTM)
    with pytest.raises(RSMoEError, match="a.tif has 13 bands .*rsmoe data convert own ... --bands 4,3,2"):
        shown(path)
    assert np.array_equal(shown(path, bands=(4, 3, 2)), as_scene(path, bands=(4, 3, 2)))
    eight = write_raster(tmp_path / "b.tif", noise(4, 40, 60, "uint8", 255))
    assert np.array_equal(shown(eight, bands=(4, 2, 1)), as_scene(eight, bands=(4, 2, 1)))


@pytest.mark.parametrize("dtype", ["uint16", "uint8"])
def test_jpeg_2000_of_three_bands(tmp_path: Path, dtype: str) -> None:
    values = noise(3, 64, 64, dtype, 255)
    options = {"quality": 100, "reversible": True}
    import rasterio

    shape = {"width": 64, "height": 64, "count": 3, "dtype": dtype}
    with rasterio.open(tmp_path / "a.jp2", "w", driver="JP2OpenJPEG", **shape, **options) as raster:
        raster.write(values)
    assert np.array_equal(shown(tmp_path / "a.jp2"), as_scene(tmp_path / "a.jp2"))
    if dtype == "uint8":
        assert np.array_equal(shown(tmp_path / "a.jp2"), np.moveaxis(values, 0, -1))


def test_a_border_that_is_not_declared(tmp_path: Path) -> None:
    """-9999 beside 0 to 0.55 would make all else white; it is left out, black, and told."""
    values = (noise(3, 100, 100) / 8000).astype("float32")
    inside = as_scene(write_raster(tmp_path / "in.tif", values[:, 10:, :]))
    values[:, :10] = -9999
    path = write_raster(tmp_path / "a.tif", values)
    image = read_image(path)
    (note,) = image.info["notes"]
    assert "-9999 in 10% of its pixels" in note and "--nodata nan" in note
    assert not np.asarray(image)[:10].any() and np.array_equal(np.asarray(image)[10:], inside)
    with open_raster(path) as raster:
        assert raster.nodata == -9999 and note in raster.notes and not raster.read().valid[:10].any()
    assert np.array_equal(shown(path, nodata=-9999), np.asarray(image)) and shown(path, nodata=float("nan")).min() == 0
    assert shown(path, nodata=float("nan"))[10:].min() == 255, "taken as a value, it whitens the rest"


def test_values_that_belong_to_the_picture_stay(tmp_path: Path) -> None:
    saturated = noise(1, 100, 100)
    saturated[:, :20] = 4000  # the largest value, of a fifth, but not apart from the rest
    two_values = np.zeros((1, 100, 100), "uint16")
    two_values[:, 50:] = 10_000
    for number, values in enumerate((saturated, two_values)):
        with open_raster(write_raster(tmp_path / f"{number}.tif", values)) as raster:
            assert raster.nodata is None and raster.read().valid.all()


def test_one_stretch_for_many(tmp_path: Path) -> None:
    dark = write_raster(tmp_path / "a.tif", noise(1, 50, 50, high=100))
    bright = write_raster(tmp_path / "b.tif", noise(1, 50, 50, high=100) + 1000)
    write_raster(tmp_path / "c.tif", noise(1, 50, 50, "uint8", 255))
    assert np.array_equal(shown(dark), shown(bright)), "each its own"
    paths = [str(tmp_path / name) for name in ("a.tif", "b.tif", "c.tif", "lost.tif")]
    stretch = measure_stretch(paths, RasterOptions())
    assert stretch is not None and stretch.low[0] < 10 and stretch.high[0] > 1090
    assert shown(dark, stretch=stretch).max() < 30 and shown(bright, stretch=stretch).min() > 225
    assert measure_stretch(paths[2:], RasterOptions()) is None


def test_without_rasterio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_raster(tmp_path / "a.tif", noise(3, 20, 20))
    monkeypatch.setitem(sys.modules, "rasterio", None)
    with pytest.raises(RSMoEError, match=r"a.tif has bands or numbers that Pillow cannot read: .*rsmoe.geo."):
        read_image(path)


def test_bytes_are_somebody_else_s(tmp_path: Path) -> None:
    """They name no other file, not even one that a raster of one's own may name, and no temporary path is told."""
    import rasterio

    write_raster(tmp_path / "secret.tif", noise(3, 40, 40))
    path = write_raster(tmp_path / "a.tif", noise(3, 40, 40))
    with rasterio.open(path, "r+") as raster:
        raster.update_tags(ns="OVERVIEWS", OVERVIEW_FILE=str(tmp_path / "secret.tif"))
    with pytest.raises(RSMoEError, match="^sent names another file, which is not read"):
        read_image(path.read_bytes(), name="sent")


def test_a_raster_as_an_image_has_pillow_s_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image

    path = write_raster(tmp_path / "a.tif", noise(13, 40, 40))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(RSMoEError, match="over Pillow's limit"):
        shown(path, bands=(1, 2, 3))
