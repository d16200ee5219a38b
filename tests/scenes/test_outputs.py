"""Every format holds every tile, its place and its texts, and a record of the scene."""

import json
import resource
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import geopandas
import pyarrow.parquet
import pytest
from shapely.geometry import shape

from modeling_rsmoe import RSMoEError
from modeling_rsmoe.scenes.answers import CombinedAnswer
from modeling_rsmoe.scenes.describe import Tile
from modeling_rsmoe.scenes.grid import Grid
from modeling_rsmoe.scenes.outputs import check_format, write
from modeling_rsmoe.scenes.result import SceneResult, SceneTask
from modeling_rsmoe.scenes.summary import Summary
from modeling_rsmoe.utils.rasters.raster import open_raster
from tests.scenes.rasters import UTM, noise, rotated, write_raster


NAMES = ["scene", "tile", "caption", "expert_text_theme", "expert_text_object"]
NAMES += [
    "router_prompt_theme",
    "router_prompt_object",
    "column",
    "row",
    "width",
    "height",
    "valid",
    "model",
    "revision",
]


def result(path: Path, kind: Any = "caption", **options: Any) -> SceneResult:
    with open_raster(write_raster(path, noise(3, 40, 60), **options)) as raster:
        grid = Grid(60, 40, 20)
        tiles = [
            Tile(
                number,
                window,
                1.0,
                f"caption {number} é\0",
                {"theme": "t?", "object": "o?"},
                {"theme": "t", "object": "o"},
            )
            for number, window in enumerate(grid)
            if number != 2
        ]
        task = SceneTask("Say it.", None if kind == "caption" else "Say it.", "nano", "abc")
        outcome = (
            Summary("all", {"theme": "t"}, {"tree": 0.5}) if kind == "caption" else CombinedAnswer("7", "the sum")
        )
        return SceneResult(task, raster, grid, tiles, outcome)


@pytest.mark.parametrize("placed", [UTM, {"crs": "EPSG:32633", "transform": rotated(20)}])
def test_every_format_says_the_same(tmp_path: Path, placed: dict[str, Any]) -> None:
    found = result(tmp_path / "a.tif", **placed)
    for suffix in (".geojson", ".gpkg", ".parquet", ".jsonl"):
        write([found], tmp_path / f"out{suffix}")
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "a.tif",
        *sorted(f"out{s}" for s in (".geojson", ".gpkg", ".jsonl", ".parquet")),
    ]

    collection = json.loads((tmp_path / "out.geojson").read_text())
    assert set(collection) == {"type", "features", "rsmoe"} and "crs" not in collection  # RFC 7946, 4
    record = collection["rsmoe"]["scenes"][0]
    assert (
        record["caption"] == "all"
        and record["mentioned"] == {"tree": 0.5}
        and record["expert_texts"] == {"theme": "t"}
    )
    assert (record["tiles"], record["skipped"], record["bands"], record["crs"]) == (5, 1, [1, 2, 3], "EPSG:32633")
    assert len(record["stretch"]["low"]) == 3 and (record["model"], record["revision"]) == ("nano", "abc")

    tiles = geopandas.read_file(tmp_path / "out.geojson")
    packed = geopandas.read_file(tmp_path / "out.gpkg", layer="tiles")
    table = geopandas.read_parquet(tmp_path / "out.parquet")
    assert list(packed.columns) == list(table.columns) == [*NAMES, "geometry"]
    assert list(tiles.columns) == [*NAMES, "style", "geometry"]
    assert tiles.crs == "EPSG:4326" and packed.crs == table.crs == "EPSG:32633"
    for frame in (tiles, packed, table):
        assert list(frame["tile"]) == [0, 1, 3, 4, 5]
        assert frame["caption"][1] == "caption 1 é\ufffd"  # a NUL would end it in a database
        assert frame["router_prompt_object"][0] == "o?"
        assert frame.to_crs("EPSG:32633").geometry.area.to_numpy() == pytest.approx([40_000] * 5, rel=1e-3)
    overlap = packed.geometry.intersection(tiles.to_crs("EPSG:32633").geometry).area
    assert overlap.to_numpy() == pytest.approx([40_000] * 5, rel=1e-3), "all formats place a tile alike"

    scenes = geopandas.read_file(tmp_path / "out.gpkg", layer="scenes")
    assert scenes["caption"][0] == "all" and scenes.geometry.area[0] == pytest.approx(240_000)
    metadata = pyarrow.parquet.read_schema(tmp_path / "out.parquet").metadata
    assert json.loads(metadata[b"rsmoe"])["scenes"] == [record] and b"geo" in metadata

    *lines, last = map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines())
    assert last == record and len(lines) == 5 and "tile" not in last
    assert lines[2]["window"] == [0, 20, 20, 20] and lines[2]["router_prompts"] == {"theme": "t?", "object": "o?"}
    assert shape(lines[2]["geometry"]).equals(tiles.geometry[2])


def test_sentences_have_their_writers(tmp_path: Path) -> None:
    found = result(tmp_path / "a.tif", **UTM)
    said = [{"text": "A port.", "writer": "theme"}, {"text": "Ships.\0", "writer": "base LM"}]
    found = replace(found, tiles=[replace(tile, sentences=said) for tile in found.tiles])
    for suffix in (".geojson", ".gpkg", ".jsonl"):
        write([found], tmp_path / f"out{suffix}")
    marked = "[theme] A port. [base LM] Ships.\ufffd"
    for frame in (geopandas.read_file(tmp_path / f"out.{kind}") for kind in ("geojson", "gpkg")):
        assert set(frame["sentences"]) == {marked}
    assert json.loads((tmp_path / "out.jsonl").read_text().splitlines()[0])["sentences"] == said


def test_answers_have_answers(tmp_path: Path) -> None:
    write([result(tmp_path / "a.tif", "answer", **UTM)], tmp_path / "out.geojson")
    collection = json.loads((tmp_path / "out.geojson").read_text())
    first = collection["features"][0]["properties"]
    assert first["question"] == "Say it." and first["answer"] == "caption 0 é\ufffd"
    record = collection["rsmoe"]["scenes"][0]
    assert (record["answer"], record["how"], record["question"]) == ("7", "the sum", "Say it.")


def test_a_raster_that_is_not_on_the_earth(tmp_path: Path) -> None:
    found = result(tmp_path / "a.tif")
    for suffix in (".geojson", ".gpkg", ".parquet", ".jsonl"):
        write([found], tmp_path / f"out{suffix}")
    collection = json.loads((tmp_path / "out.geojson").read_text())
    assert {feature["geometry"] for feature in collection["features"]} == {None}  # RFC 7946, 3.2: unlocated
    assert "no geotransform" in collection["rsmoe"]["scenes"][0]["notes"][0]
    for frame in (
        geopandas.read_file(tmp_path / "out.gpkg", layer="tiles"),
        geopandas.read_parquet(tmp_path / "out.parquet"),
    ):
        assert frame.geometry[2].bounds == (0, -40, 20, -20)


def test_scenes_of_several_systems_are_in_longitude_and_latitude(tmp_path: Path) -> None:
    here = result(tmp_path / "a.tif", **UTM)
    there = result(tmp_path / "b.tif", crs="EPSG:3857", transform=UTM["transform"])
    nowhere = result(tmp_path / "c.tif")
    write([here, there, nowhere], tmp_path / "out.parquet")
    frame = geopandas.read_parquet(tmp_path / "out.parquet")
    assert frame.crs == "EPSG:4326" and len(frame) == 15 and frame.geometry.isna().sum() == 5
    write([here, here], tmp_path / "same.parquet")
    assert geopandas.read_parquet(tmp_path / "same.parquet").crs == "EPSG:32633"


def test_formats_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(RSMoEError, match="out.shp ends in none of .geojson, .gpkg, .parquet, .jsonl"):
        check_format(Path("out.shp"))
    check_format(Path("out.GeoJSON"))


def test_nothing_is_left_of_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = result(tmp_path / "a.tif", **UTM)
    (tmp_path / "out.geojson").write_text("before")

    def fail(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    for suffix in (".geojson", ".jsonl", ".gpkg", ".parquet"):
        monkeypatch.setattr(f"modeling_rsmoe.scenes.outputs.{'footprint' if 'json' in suffix else 'outline'}", fail)
        with pytest.raises(OSError, match="No space left"):
            write([found], tmp_path / f"out{suffix}")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.tif", "out.geojson"]
    assert (tmp_path / "out.geojson").read_text() == "before"


@pytest.mark.skipif(sys.platform == "win32", reason="no limits of file sizes")
@pytest.mark.parametrize("suffix", [".geojson", ".jsonl", ".gpkg", ".parquet"])
def test_a_disk_that_is_really_full(tmp_path: Path, suffix: str) -> None:
    """The system itself refuses to write, by a limit on the size of files."""
    found = result(tmp_path / "a.tif", **UTM)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, hard))
    try:
        with pytest.raises((OSError, RSMoEError)) as raised:
            write([found], tmp_path / f"out{suffix}")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "arge" in str(raised.value) or "cannot be written" in str(raised.value)
    assert [file.name for file in tmp_path.iterdir()] == ["a.tif"]


def test_a_score_is_a_column_where_there_is_one(tmp_path: Path) -> None:
    found = result(tmp_path / "a.tif", **UTM)
    found = replace(found, tiles=[replace(tile, score=tile.number / 4) for tile in found.tiles])
    for suffix in (".geojson", ".gpkg", ".parquet", ".jsonl"):
        write([found], tmp_path / f"out{suffix}")
    frames = [geopandas.read_file(tmp_path / name, layer=0) for name in ("out.geojson", "out.gpkg")]
    for frame in (*frames, geopandas.read_parquet(tmp_path / "out.parquet")):
        assert list(frame["score"]) == [0, 0.25, 0.75, 1, 1.25]
    first, *_ = (tmp_path / "out.jsonl").read_text().splitlines()
    assert json.loads(first)["score"] == 0


def test_geojson_from_python_is_that_of_the_file(tmp_path: Path) -> None:
    found = result(tmp_path / "a.tif", **UTM)
    write([found], tmp_path / "out.geojson")
    assert json.loads(json.dumps(found.geojson())) == json.loads((tmp_path / "out.geojson").read_text())
