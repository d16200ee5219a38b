"""Rasters of every kind as images: what is shown, what is no data, and what is refused."""

import os
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.control import GroundControlPoint
from rasterio.enums import Resampling
from rasterio.transform import Affine
from shapely.geometry import shape

from modeling_rsmoe import RSMoEError
from modeling_rsmoe.scenes.footprint import footprint
from modeling_rsmoe.scenes.grid import Window
from modeling_rsmoe.utils.rasters.raster import open_raster
from tests.scenes.rasters import UTM, noise, patch_tags, write_raster


def pixels(path: Path, **options) -> tuple[np.ndarray, np.ndarray]:
    """The whole raster as shown, `[H, W, 3]`, and where it is data."""
    with open_raster(path, **options) as raster:
        shown = raster.read()
        assert shown.image.mode == "RGB"
        return np.asarray(shown.image), shown.valid


# ---- numbers to colors


def test_8_bit_bands_are_taken_as_they_are(tmp_path: Path) -> None:
    values = noise(3, 20, 30, "uint8", 255)
    shown, valid = pixels(write_raster(tmp_path / "a.tif", values, **UTM))
    assert (shown == np.moveaxis(values, 0, -1)).all() and valid.all()
    gray, _ = pixels(write_raster(tmp_path / "b.tif", values[:1], **UTM))
    assert (gray == values[0][..., None]).all()


@pytest.mark.parametrize("dtype", ["uint16", "int16", "int32", "uint32", "float32", "float64", "int8"])
def test_other_numbers_are_stretched_by_percentiles_of_each_band(tmp_path: Path, dtype: str) -> None:
    values = noise(3, 50, 50, dtype, 100) * np.array([1, 1, 1], dtype)[:, None, None]
    values[0, 0, 0] = 127  # an outlier does not darken the rest
    shown, _ = pixels(write_raster(tmp_path / "a.tif", values))
    for band in range(3):
        low, high = np.percentile(values[band].astype(float), (2, 98))
        expected = np.rint(((values[band].astype(float) - low) / (high - low) * 255).clip(0, 255))
        assert np.abs(shown[..., band] - expected).max() <= 1
    assert shown[0, 0, 0] == 255


def test_the_stretch_is_the_scene_s_in_every_window(tmp_path: Path) -> None:
    values = np.repeat(np.arange(64, dtype="uint16") * 100, 64).reshape(1, 64, 64)
    with open_raster(write_raster(tmp_path / "a.tif", values)) as raster:
        whole = np.asarray(raster.read().image)
        for row in (0, 16, 40):
            window = np.asarray(raster.read(Window(8, row, 24, 24)).image)
            assert (window == whole[row : row + 24, 8:32]).all()


def test_a_large_scene_is_sampled_all_over(tmp_path: Path) -> None:
    """Sampled by windows, the ends are near those of all values; a scene that is empty there is read as a whole."""
    side = 4608
    values = np.tile(np.arange(0, side, dtype="uint16"), (side, 1))[None]
    path = write_raster(tmp_path / "a.tif", values, tiled=True, blockxsize=256, blockysize=256)
    with open_raster(path) as raster:
        assert raster.stretch is not None
        assert raster.stretch.low[0] == pytest.approx(0.02 * side, abs=60)
        assert raster.stretch.high[0] == pytest.approx(0.98 * side, abs=60)
    values[:] = 0
    values[0, 200:240, 200:240] = 7  # between the sampled windows
    values[0, 210:230, 210:230] = 9
    with open_raster(write_raster(tmp_path / "b.tif", values, nodata=0, compress="deflate")) as raster:
        assert raster.stretch is not None and raster.stretch.low == (7,) and raster.stretch.high == (9,)


def test_one_value_everywhere(tmp_path: Path) -> None:
    shown, _ = pixels(write_raster(tmp_path / "a.tif", np.full((1, 20, 20), 32768, "uint16")))
    assert (shown == 128).all()
    shown, _ = pixels(write_raster(tmp_path / "b.tif", np.full((1, 20, 20), 0.5, "float32")))
    assert (shown == 128).all()


def test_a_color_table(tmp_path: Path) -> None:
    values = np.array([[0, 1, 2, 3]], "uint8").repeat(8, 0).repeat(4, 1)[None]
    path = write_raster(tmp_path / "a.tif", values)
    with rasterio.open(path, "r+") as raster:
        raster.write_colormap(1, {0: (0, 0, 0), 1: (255, 0, 0), 2: (0, 99, 0), 3: (0, 0, 7)})
    shown, _ = pixels(path)
    assert [shown[0, column].tolist() for column in (0, 4, 8, 12)] == [[0] * 3, [255, 0, 0], [0, 99, 0], [0, 0, 7]]
    with open_raster(path) as raster:  # indices are not averaged
        small = np.asarray(raster.read(max_side=8).image).reshape(-1, 3)
    assert {tuple(color) for color in small.tolist()} <= {(0, 0, 0), (255, 0, 0), (0, 99, 0), (0, 0, 7)}


def test_one_bit(tmp_path: Path) -> None:
    values = np.zeros((1, 16, 16), "uint8")
    values[0, :, 8:] = 1
    shown, _ = pixels(write_raster(tmp_path / "a.tif", values, nbits=1))
    assert shown[0, 0].tolist() == [0, 0, 0] and shown[0, 15].tolist() == [255, 255, 255]


# ---- what is no data


def test_nodata_nan_and_infinity_are_black_and_do_not_count(tmp_path: Path) -> None:
    values = noise(1, 40, 40, "float32", 100)
    values[0, :10] = -9999
    values[0, 10:12] = np.nan
    values[0, 12:14] = np.inf
    path = write_raster(tmp_path / "a.tif", values, nodata=-9999)
    shown, valid = pixels(path)
    assert not valid[:14].any() and valid[14:].all() and (shown[:14] == 0).all() and shown[14:].max() == 255
    with open_raster(path) as raster:
        assert raster.stretch is not None and raster.stretch.low[0] >= 1
        for side in (4, 10, 37):  # neither does it leak into a smaller image
            smaller = raster.read(max_side=side)
            data = np.asarray(smaller.image)[smaller.valid]
            assert data.min() > 40 if side == 4 else data.max() > 0


def test_a_pixel_is_data_if_one_band_is(tmp_path: Path) -> None:
    values = np.zeros((3, 10, 10), "uint8")
    values[0, 5:] = 200  # red, not "no data in green and blue"
    shown, valid = pixels(write_raster(tmp_path / "a.tif", values, nodata=0))
    assert valid[5:].all() and not valid[:5].any() and shown[9, 9].tolist() == [200, 0, 0]


def test_alpha_and_masks(tmp_path: Path) -> None:
    values = noise(4, 10, 10, "uint8", 200)
    values[3, :5], values[3, 5:] = 0, 255
    path = write_raster(tmp_path / "a.tif", values, photometric="rgb", alpha="yes")
    shown, valid = pixels(path)
    assert not valid[:5].any() and valid[5:].all() and (shown[:5] == 0).all()
    path = write_raster(tmp_path / "b.tif", values[:3])
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "r+") as raster:
        raster.write_mask(values[3])
    assert (pixels(path)[1] == valid).all()


# ---- bands


def test_which_bands_are_shown(tmp_path: Path) -> None:
    values = noise(4, 10, 10, "uint8", 255)
    names = ["blue", "green", "red", "nir"]
    with open_raster(write_raster(tmp_path / "a.tif", values, names)) as raster:
        assert (raster.bands, raster.band_names) == ((3, 2, 1), ("red", "green", "blue"))
    with open_raster(write_raster(tmp_path / "b.tif", values, photometric="rgb")) as raster:
        assert raster.bands == (1, 2, 3)
    path = write_raster(tmp_path / "c.tif", values, ["B2", "B3", "B4", "B8"])
    with open_raster(path, bands=("B8", "b4", 2)) as raster:
        assert raster.bands == (4, 3, 2)
        assert (np.asarray(raster.read().image) == np.moveaxis(values[[3, 2, 1]], 0, -1)).all()
    with open_raster(path, bands=[4]) as raster:
        assert raster.bands == (4,)


@pytest.mark.parametrize(
    ("count", "bands", "message"),
    [
        (13, None, "has 13 bands .*choose one, three for red, green and blue, or a radar's two .*--bands 1,2,3 for"),
        (4, (1, 2, 3, 4), "4 bands were chosen"),
        (3, (), "0 bands were chosen"),
        (3, (1, 2, 4), "has no band '4'; it has 1 B1, 2 B2, 3 B3"),
        (3, (0,), "has no band '0'"),
        (3, ("nir",), "has no band 'nir'"),
    ],
)
def test_a_choice_is_asked_for(tmp_path: Path, count: int, bands: tuple | None, message: str) -> None:
    path = write_raster(tmp_path / "a.tif", noise(count, 10, 10), [f"B{number + 1}" for number in range(count)])
    with pytest.raises(RSMoEError, match=message):
        open_raster(path, bands)


def test_two_bands_without_names(tmp_path: Path) -> None:
    values = noise(2, 20, 20, "uint8", 255)
    path = write_raster(tmp_path / "a.tif", values)
    with open_raster(path) as raster:
        assert (np.asarray(raster.read().image) == values[0][..., None]).all()
        assert "the first is shown: --bands 2 shows the other, --bands 1,2 both with their ratio" in raster.notes[-1]
    with open_raster(path, bands=(2,)) as raster:
        assert (np.asarray(raster.read().image) == values[1][..., None]).all() and len(raster.notes) == 1
    with open_raster(write_raster(tmp_path / "b.tif", values, alpha="yes")) as raster:
        assert not any("2 bands" in note for note in raster.notes)


def test_a_note_of_ground_control_points(tmp_path: Path) -> None:
    points = [GroundControlPoint(row, column, column, -row) for row in (0, 10) for column in (0, 10)]
    path = write_raster(tmp_path / "a.tif", noise(1, 10, 10, "uint8", 255), gcps=points, crs="EPSG:4326")
    with open_raster(path) as raster:
        assert raster.notes == [f"{path} has no geotransform: its tiles are placed by its 4 ground control points"]


@pytest.mark.parametrize("axis", [1, 2])
@pytest.mark.parametrize("placed", ["transform", "points"])
def test_a_raster_that_is_stored_mirrored(tmp_path: Path, axis: int, placed: str) -> None:
    """It is shown, cut and placed as the same raster stored from the north-west."""
    values = noise(3, 30, 40, "uint8", 255)
    values[:, :9] = 0
    turn = Affine(1, 0, 0, 0, -1, 30) if axis == 1 else Affine(-1, 0, 40, 0, 1, 0)

    def place(transform: Affine) -> dict:
        if placed == "transform":
            return {"transform": transform, "crs": UTM["crs"]}
        corners = [(column, row) for column in (0, 20, 40) for row in (0, 15, 30)]
        points = [GroundControlPoint(row, column, *(transform @ (column, row))) for column, row in corners]
        return {"gcps": points, "crs": UTM["crs"]}

    stored = np.flip(values, axis)
    turned = write_raster(tmp_path / "a.tif", stored, nodata=0, **place(UTM["transform"] @ turn))
    straight = write_raster(tmp_path / "b.tif", values, nodata=0, **place(UTM["transform"]))
    with open_raster(turned) as one, open_raster(straight) as other:
        assert "stored mirrored" in one.notes[-1] and not any("mirrored" in note for note in other.notes)
        for window in (Window(0, 0, 40, 30), Window(4, 5, 20, 10)):
            mine, theirs = one.read(window), other.read(window)
            assert mine.image == theirs.image and (mine.valid == theirs.valid).all()
            found, expected = shape(footprint(one, window)), shape(footprint(other, window))
            assert found.symmetric_difference(expected).area < 1e-3 * expected.area


def test_the_raster_in_a_zip(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "a.tif", noise(1, 20, 30, "uint8", 255), **UTM)
    with zipfile.ZipFile(tmp_path / "One.ZIP", "w") as archive:
        archive.write(path, "deep folder/a.tif")
        archive.writestr("readme.txt", "")
    with open_raster(tmp_path / "One.ZIP") as raster, open_raster(path) as unpacked:
        assert raster.name == f"{tmp_path}/One.ZIP" and raster.read().image == unpacked.read().image
    for name, members, message in (
        ("two.zip", ("b.tif", "c.tif"), f"holds 2 rasters: name those that you want, as /vsizip/{tmp_path}/two.zip/b"),
        ("none.zip", ("a.txt",), "holds no raster"),
        ("remote.zip", ("vsicurl/http://127.0.0.1/a.tif",), "holds no raster"),
    ):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            for member in members:
                archive.write(path, member)
        with pytest.raises(RSMoEError, match=message):
            open_raster(tmp_path / name)
    (tmp_path / "text.zip").write_text("no archive")
    with pytest.raises(RSMoEError, match="is no .zip that can be read"):
        open_raster(tmp_path / "text.zip")


def test_files_of_one_grid_are_stacked(tmp_path: Path) -> None:
    values = noise(3, 10, 12, "uint8", 255)
    paths = [str(write_raster(tmp_path / f"{band}.tif", values[band : band + 1], **UTM)) for band in range(3)]
    with open_raster(paths) as raster:
        assert (np.asarray(raster.read().image) == np.moveaxis(values, 0, -1)).all()
    other = str(write_raster(tmp_path / "other.tif", noise(1, 20, 24, "uint8", 255), **UTM))
    with pytest.raises(RSMoEError, match="are not of one grid: name bands of the same resolution"):
        open_raster([*paths[:2], other])


# ---- windows and sizes


def test_smaller_images_come_from_overviews(tmp_path: Path) -> None:
    path = write_raster(
        tmp_path / "a.tif", np.full((1, 512, 512), 10, "uint8"), tiled=True, blockxsize=128, blockysize=128
    )
    with rasterio.open(path, "r+") as raster:
        raster.build_overviews([2, 4], Resampling.nearest)
    with rasterio.open(path, "r+", OVERVIEW_LEVEL=1) as overview:  # marked, to know it again
        overview.write(np.full((1, 128, 128), 99, "uint8"))
    with open_raster(path) as raster:
        assert np.asarray(raster.read(max_side=128).image).max() == 99
        assert np.asarray(raster.read(Window(0, 0, 256, 256), 64).image).max() == 99
        assert np.asarray(raster.read(Window(0, 0, 256, 256)).image).max() == 10


def test_a_closed_raster_opens_again(tmp_path: Path) -> None:
    raster = open_raster(write_raster(tmp_path / "a.tif", noise(1, 20, 40)))
    before = raster.overview(10).image
    raster.close()
    assert before.size == (10, 8) and raster.overview(10).image == before
    raster.close()


def test_notes_of_rasters_that_are_not_on_the_earth(tmp_path: Path) -> None:
    values = noise(1, 10, 10, "uint8", 255)
    for options, note in [
        ({}, "has no geotransform"),
        ({"transform": UTM["transform"]}, "has no coordinate system"),
        ({"gcps": [GroundControlPoint(0, 0, 1, 1)], "crs": "EPSG:4326"}, "ground control points but no geotransform"),
    ]:
        with open_raster(write_raster(tmp_path / "a.tif", values, **options)) as raster:
            assert len(raster.notes) == 1 and note in raster.notes[0] and "not placed on the earth" in raster.notes[0]
    with open_raster(write_raster(tmp_path / "b.tif", values, **UTM)) as raster:
        assert raster.notes == []


# ---- what is refused


def refused(path: str | Path, message: str) -> None:
    with pytest.raises(RSMoEError, match=message):
        open_raster(path).read(max_side=64)


@pytest.mark.parametrize("layout", [{}, {"tiled": True, "blockxsize": 64, "blockysize": 64}, {"compress": "deflate"}])
@pytest.mark.parametrize("lie", [{256: 65536, 257: 65536}, {257: 65536}, {257: 65536, 278: 65536}])
def test_a_header_that_lies(tmp_path: Path, layout: dict, lie: dict[int, int]) -> None:
    """4 billion pixels are promised; what is there does not reach so far."""
    path = write_raster(tmp_path / "a.tif", noise(1, 256, 256, "uint8", 255), **layout)
    refused(patch_tags(path, tmp_path / "b.tif", lie), "truncated or damaged")


@pytest.mark.parametrize("share", [0.02, 0.3, 0.99])
@pytest.mark.parametrize("layout", [{}, {"tiled": True, "blockxsize": 64, "blockysize": 64}, {"compress": "deflate"}])
def test_a_truncated_file(tmp_path: Path, layout: dict, share: float) -> None:
    path = write_raster(tmp_path / "a.tif", noise(3, 256, 256, "uint8", 255), **layout)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    refused(path, "truncated or damaged")


def test_a_block_as_large_as_the_scene(tmp_path: Path) -> None:
    """To see one pixel of it, all of it would be unpacked: a small file can ask for all memory."""
    path = tmp_path / "a.tif"
    layout = {"compress": "deflate", "tiled": True, "blockxsize": 20000, "blockysize": 20000, "SPARSE_OK": True}
    with rasterio.open(path, "w", driver="GTiff", width=20000, height=20000, count=1, dtype="uint8", **layout):
        pass
    refused(path, r"stored in blocks of 20000 x 20000 px \(381 MiB\).*gdal_translate -of COG")


def test_no_data_at_all(tmp_path: Path) -> None:
    refused(write_raster(tmp_path / "a.tif", np.full((3, 20, 20), np.nan, "float32")), "holds no data")
    refused(write_raster(tmp_path / "b.tif", np.full((1, 20, 20), 7, "uint16"), nodata=7), "holds no data")
    refused(write_raster(tmp_path / "c.tif", np.zeros((3, 20, 20), "uint8"), nodata=0), "holds no data")


@pytest.mark.parametrize("dtype", ["complex64", "complex128", "complex_int16"])
def test_complex_values(tmp_path: Path, dtype: str) -> None:
    path = tmp_path / "a.tif"
    with rasterio.open(path, "w", driver="GTiff", width=16, height=16, count=1, dtype=dtype):
        pass
    refused(path, f"holds complex values \\({dtype}\\), which are no image")


def test_what_is_no_raster(tmp_path: Path) -> None:
    (tmp_path / "text.tif").write_text("no raster")
    (tmp_path / "empty.tif").touch()
    os.mkfifo(tmp_path / "pipe.tif")
    vrt = "<VRTDataset rasterXSize='9' rasterYSize='9'><VRTRasterBand><SimpleSource><SourceFilename>/vsicurl/http://x"
    (tmp_path / "recipe.tif").write_text(vrt)  # would ask a server, if GDAL were let
    for name, message in [
        ("text.tif", "is not a raster that can be read here: give a GeoTIFF"),
        ("empty.tif", "is empty"),
        ("pipe.tif", "is not a regular file"),
        ("lost.tif", "there is no file"),
        ("recipe.tif", "is not a raster"),
        ("", "is a folder"),
    ]:
        refused(tmp_path / name, message)
    refused("a\0b", "there is no file")
    refused(write_raster(tmp_path / "small.tif", noise(1, 7, 100)), "has 100 x 7 pixels, too few to describe")


@pytest.mark.skipif(
    sys.platform == "win32" or not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads all"
)
def test_no_permission(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "a.tif", noise(1, 10, 10))
    path.chmod(0)
    refused(path, "cannot be opened")


def test_gdal_s_words_are_not_on_the_terminal(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = write_raster(tmp_path / "a.tif", noise(1, 256, 256, "uint8", 255), compress="deflate")
    refused(patch_tags(path, tmp_path / "b.tif", {257: 65536}), "truncated or damaged")
    assert capfd.readouterr() == ("", "")


def test_a_narrow_raster_keeps_a_side(tmp_path: Path) -> None:
    with open_raster(write_raster(tmp_path / "a.tif", noise(1, 40, 6000))) as raster:
        assert raster.overview(1024).image.size == (1024, 8)
        assert raster.read(Window(0, 0, 1, 1), 1).image.size == (1, 1)


@pytest.mark.parametrize("crs", ['LOCAL_CS["Site grid",UNIT["metre",1]]', "IAU_2015:49900"])
def test_a_coordinate_system_that_is_not_of_the_earth_says_so(tmp_path: Path, crs: str) -> None:
    with open_raster(write_raster(tmp_path / "a.tif", noise(1, 20, 20), **{**UTM, "crs": crs})) as raster:
        (note,) = raster.notes
        assert "a coordinate system without longitude and latitude" in note and "not placed on the earth" in note
        assert footprint(raster, Window(0, 0, 20, 20)) is None
