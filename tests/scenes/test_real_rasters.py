"""Real rasters of odd kinds, where a data folder lies beside the repository: described, placed, written and shown.

What each kind means is tested on rasters made by code; here nothing may fail, and each footprint is held against
GDAL's.
"""

import json
import os
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pyarrow.parquet
import pytest
import rasterio
from PIL import Image
from rasterio.warp import transform_bounds
from shapely.geometry import shape
from shapely.ops import unary_union

from modeling_rsmoe import RSMoEError
from modeling_rsmoe.inference import Predictor
from modeling_rsmoe.prompting_rsmoe import DEFAULT_INSTRUCTION
from modeling_rsmoe.scenes.figure import write_figure
from modeling_rsmoe.scenes.map import write_map
from modeling_rsmoe.scenes.outputs import write
from modeling_rsmoe.scenes.pipeline import describe_scene, describe_scenes, open_scenes
from modeling_rsmoe.scenes.raster import open_raster
from modeling_rsmoe.scenes.result import SceneTask
from modeling_rsmoe.scenes.view import view_scene
from tests.scenes.test_stac import asset, item, save
from tests.tiny import tiny_model, tiny_processor


DATA = Path(os.environ.get("RSMOE_DATA", Path(__file__).parents[3] / "shared" / "data")) / "geotiff"
EDGE = DATA / "edge"
RASTERS = sorted(DATA.glob("*.tif")) + sorted(EDGE.glob("*.tif"))
EMPTY = "inverted_lat"  # every value is the no-data value
CHOSEN = ("landsat", "naip")  # four bands without names

pytestmark = pytest.mark.skipif(not EDGE.is_dir(), reason="no folder geotiff/edge: set RSMOE_DATA to a data folder")


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return Predictor(tiny_model(), tiny_processor(), {"router_mode": "none", "max_new_tokens": 3})


def gdal_bounds(path: Path) -> list[tuple[float, ...]] | None:
    """Of the parts of a footprint, by GDAL; None for another planet."""
    with rasterio.open(path) as raster:
        if raster.gcps[0]:
            x, y = zip(*((point.x, point.y) for point in raster.gcps[0]))
            return [(min(x), min(y), max(x), max(y))]
        if "MARS" in raster.crs.to_wkt():
            return None
        west, south, east, north = transform_bounds(raster.crs, "EPSG:4326", *raster.bounds, densify_pts=100)
    if west > east:
        return [(-180, south, east, north), (west, south, 180, north)]
    return [(west, south, east, north)]


@pytest.mark.slow
@pytest.mark.parametrize("path", [path for path in RASTERS if path.stem != EMPTY], ids=lambda path: path.stem)
def test_a_raster_through_every_door(path: Path, predictor: Predictor, tmp_path: Path) -> None:
    bands = (1, 2, 3) if path.stem.startswith(CHOSEN) else None
    rasters = open_scenes([str(path)], tile=10_000, bands=bands)
    (result,) = describe_scenes(rasters, predictor, SceneTask(DEFAULT_INSTRUCTION, None, "tiny"), tile=10_000)
    assert result.text and len(result.tiles) == 1
    outputs = {name: tmp_path / f"out.{name}" for name in ("geojson", "gpkg", "parquet", "jsonl")}
    for output in outputs.values():
        write([result], output)
    (feature,) = json.loads(outputs["geojson"].read_text())["features"]
    assert json.loads(outputs["jsonl"].read_text().splitlines()[0])["geometry"] == feature["geometry"]
    expected = gdal_bounds(path)
    if expected is None:
        assert feature["geometry"] is None
    else:
        form = shape(feature["geometry"])
        found = sorted(part.bounds for part in getattr(form, "geoms", [form]))
        assert form.is_valid and len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert one == pytest.approx(other, abs=0.02 * max(other[2] - other[0], other[3] - other[1]))
        for name in ("gpkg", "parquet"):
            frame = geopandas.read_file(outputs[name], layer="tiles") if name == "gpkg" else None
            frame = geopandas.read_parquet(outputs[name]) if frame is None else frame
            there = unary_union(frame.to_crs("EPSG:4326").geometry.segmentize(1))
            if len(expected) == 1:
                assert there.bounds == pytest.approx(form.bounds, abs=0.02 * max(*there.bounds[2:], 1))
    assert b"rsmoe" in pyarrow.parquet.read_schema(outputs["parquet"]).metadata
    view = view_scene(result, 128)
    assert (view.places[0] is None) == (expected is None)
    write_map([view], tmp_path / "map.html")
    write_figure([view], tmp_path / "figure.png")
    assert Image.open(tmp_path / "figure.png").size[0] > 1000 and path.stem in (tmp_path / "map.html").read_text()


def test_asking_and_an_empty_raster(predictor: Predictor) -> None:
    answer = describe_scene(EDGE / "cog_rgba.tif", predictor, question="Are there cars?")
    assert answer.task.kind == "answer" and answer.record()["tiles"] == 1
    with pytest.raises(RSMoEError, match="holds no data: every pixel is"):
        open_raster(EDGE / f"{EMPTY}.tif")


def test_a_radar_scene_is_shown_as_the_ground_lies() -> None:
    """Sentinel-1 looks back from the west: the sea off Kerala is in the file's east, and in the picture's west."""
    with open_raster(EDGE / "cog_gcps.tif") as raster:
        shown = np.asarray(raster.overview(64).image)
    assert shown[21:, :16].mean() < shown[21:, 48:].mean() / 2


def test_items_over_single_bands(tmp_path: Path) -> None:
    assets: dict[str, Any] = {}
    for number, name in enumerate(("blue", "green", "red"), start=2):
        fields = {"bands": [{"name": f"B{number}", "eo:common_name": name}]}
        assets[f"B{number}"] = asset(str(EDGE / f"{name}.tif")) | fields
    (raster,) = open_scenes([save(tmp_path / "item.json", item(**assets))], bands=("red", "green", "blue"))
    assert [Path(path).stem for path in raster.paths] == ["red", "green", "blue"] and raster.bands == (1, 2, 3)


@pytest.mark.parametrize("path", sorted(EDGE.glob("*.json")), ids=lambda path: path.stem)
def test_published_items_name_what_they_have(path: Path) -> None:
    """Their files are elsewhere: an error names the item, what it has, and what can be done."""
    expected = {
        "stac_bands": "several bands 'red' (1 of asset rgb, 1 of asset rgb_common)",
        "stac_bands_v1": "several bands 'red' (1 of asset rgb, 1 of asset rgb_common)",
        "stac_raster_v1": "allow it by --remote",
        "stac_relative": "asset 'MS3' of item K3_20201112193439_45302_18521139_L1G",
    }
    with pytest.raises(RSMoEError) as raised:
        open_scenes([str(path)], bands=("red", "green", "blue"))
    assert expected[path.stem] in str(raised.value)
