"""Colors of tiles on web maps, and what map libraries make of them."""

from pathlib import Path
from typing import Any

import geopandas
import pytest

from modeling_rsmoe.scenes.answers import CombinedAnswer
from modeling_rsmoe.scenes.describe import Tile
from modeling_rsmoe.scenes.grid import Grid
from modeling_rsmoe.scenes.raster import open_raster
from modeling_rsmoe.scenes.result import SceneResult, SceneTask
from modeling_rsmoe.scenes.style import COLORS, GREY, OTHER
from modeling_rsmoe.scenes.summary import Summary
from tests.scenes.rasters import UTM, noise, write_raster


CAPTIONS = ["Some trees near a river.", "An airport with planes.", "Many green trees.", "No known thing at all."]


def result(folder: Path, texts: list[str] = CAPTIONS, question: str | None = None) -> SceneResult:
    """A scene of one tile for each text."""
    with open_raster(write_raster(folder / "a.tif", noise(3, 20, 20 * len(texts)), **UTM)) as raster:
        grid = Grid(raster.width, raster.height, 20)
        tiles = [Tile(number, window, 1.0, texts[number], {}, {}) for number, window in enumerate(grid)]
        outcome: Any = Summary("all", {}, {}) if question is None else CombinedAnswer("yes", "")
        return SceneResult(SceneTask("Say it.", question), raster, grid, tiles, outcome)


def styles(found: SceneResult) -> list[dict[str, Any]]:
    return [feature["properties"]["style"] for feature in found.geojson()["features"]]


def test_captions_are_colored_by_their_first_noun(tmp_path: Path) -> None:
    found = result(tmp_path)
    assert found.legend() == {"tree": COLORS[0], "airport": COLORS[1], OTHER: GREY}
    assert [style["fillColor"] for style in styles(found)] == [COLORS[0], COLORS[1], COLORS[0], GREY]
    assert styles(found)[0] == {"color": COLORS[0], "weight": 1, "fillColor": COLORS[0], "fillOpacity": 0.35}


def test_answers_have_their_colors_and_rare_ones_none(tmp_path: Path) -> None:
    answers = ["Yes.", "no", "yes", *(f"{number} ships" for number in range(9)), ""]
    found = result(tmp_path, answers, "Ships?")
    assert list(found.legend()) == ["yes", "no", "0 ships", "1 ships", "2 ships", "3 ships", "4 ships", OTHER]
    colors = [style["fillColor"] for style in styles(found)]
    assert colors[:3] == [COLORS[0], COLORS[1], COLORS[0]] and colors[-5:] == [GREY] * 5


def test_ipyleaflet_shows_the_colors(tmp_path: Path) -> None:
    ipyleaflet = pytest.importorskip("ipyleaflet")
    found = result(tmp_path)
    layer = ipyleaflet.GeoJSON(data=found.geojson(), hover_style={"fillOpacity": 0.7})
    assert [feature["properties"]["style"] for feature in layer.data["features"]] == styles(found)


@pytest.mark.parametrize("from_file", [True, False])
def test_leafmap_shows_the_colors(tmp_path: Path, from_file: bool) -> None:
    leafmap = pytest.importorskip("leafmap.leafmap")
    from modeling_rsmoe.scenes.outputs import write

    found = result(tmp_path)
    write([found], tmp_path / "a.geojson")
    page = leafmap.Map()
    page.add_geojson(str(tmp_path / "a.geojson") if from_file else found.geojson(), fields=["caption"])
    shown = [feature["properties"] for feature in page.geojson_layers[0].data["features"]]
    assert [properties["style"] for properties in shown] == styles(found)
    assert [properties["caption"] for properties in shown] == CAPTIONS


def test_geopandas_reads_it(tmp_path: Path) -> None:
    frame = geopandas.GeoDataFrame.from_features(result(tmp_path).geojson(), crs="EPSG:4326")
    assert list(frame["caption"]) == CAPTIONS and frame["style"][0]["fillColor"] == COLORS[0]
