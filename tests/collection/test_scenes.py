"""Collections of scenes: a row for each tile, whatever happens, by any engine. The model is tiny and random."""

import json
import os
import pickle
import sys
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pyarrow.parquet as pq
import pytest
from rasterio.transform import from_origin

from modeling_rsmoe.collection.describers import Captioner
from modeling_rsmoe.collection.engines import LocalEngine, RayEngine
from modeling_rsmoe.collection.pipeline import describe_collection
from modeling_rsmoe.collection.scenes import Cut, find_tiles
from modeling_rsmoe.collection.store import METADATA
from modeling_rsmoe.collection.tiles import TileCaptioner
from modeling_rsmoe.errors_rsmoe import RSMoEError
from modeling_rsmoe.inference import Predictor
from modeling_rsmoe.scenes import footprint
from modeling_rsmoe.scenes.pipeline import describe_scenes, open_scenes
from modeling_rsmoe.scenes.raster import Raster, open_raster
from modeling_rsmoe.scenes.result import SceneTask
from tests.cli.test_cli import run
from tests.scenes.rasters import UTM, noise, write_raster
from tests.scenes.test_stac import asset, collection, item, save

from .test_pipeline import Stopped, stop_after


CUT = Cut(tile=20)
OTHER_ZONE = {"crs": "EPSG:32634", "transform": from_origin(400_000, 5_800_000, 10, 10)}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """19 tiles of 20 px in four scenes, a file that is none, and a preview that is not meant."""
    folder = tmp_path_factory.mktemp("scenes") / "scenes"
    (folder / "north").mkdir(parents=True)
    write_raster(folder / "a.tif", noise(3, 40, 60), **UTM)  # 6 tiles, stretched
    values = noise(3, 40, 40, "uint8", 255)
    values[:, :20, :20] = 0
    write_raster(folder / "north/b.tif", values, nodata=0, **OTHER_ZONE)  # 4 tiles, the first without data
    sparse = np.zeros((3, 20, 100), np.uint8)
    sparse[:, :8, :20] = sparse[:, :5, 20:40] = sparse[:, :2, 40:60] = 7
    write_raster(folder / "north/sparse.tif", sparse, nodata=0)  # 5 tiles, with 0.4, 0.25, 0.1 and no data
    damaged = write_raster(
        folder / "torn.tif",
        noise(1, 16, 64, "uint8", 255),
        compress="deflate",
        blockxsize=16,
        blockysize=16,
        tiled=True,
    )  # 4 tiles with 16 px, of which one cannot be read
    content = bytearray(damaged.read_bytes())
    with open_raster(damaged) as raster:
        start = int(raster._datasets[0].get_tag_item("BLOCK_OFFSET_0_0", "TIFF", bidx=1))
    content[start : start + 40] = b"x" * 40
    damaged.write_bytes(content)
    (folder / "none.tif").write_text("no raster")
    (folder / "a.png").write_bytes(b"preview")
    return folder


@pytest.fixture
def describer(captioner: Captioner) -> TileCaptioner:
    return TileCaptioner(captioner.checkpoint, captioner.instruction, captioner.generation, CUT)


def rows_of(file: Path) -> list[dict[str, Any]]:
    return pq.read_table(file).to_pylist()


def test_rows_are_those_of_each_scene(describer: TileCaptioner, scenes: Path, tmp_path: Path, monkeypatch) -> None:
    measured = []
    sample = Raster.sample
    monkeypatch.setattr(Raster, "sample", lambda raster: measured.append(raster.name) or sample(raster))
    output, told = tmp_path / "out.parquet", []
    tiles = find_tiles([str(scenes)], CUT, progress=lambda *step: told.append(step))
    made = describe_collection(describer, tiles, output, LocalEngine(), 2, lambda *step: told.append(step))
    assert told[0] == ("opening the scenes", 0, 5, "scenes") and told[-1] == ("captions of 20 tiles", 20, 20, "tiles")
    assert sorted(measured) == ["a.tif", "north/b.tif", "north/sparse.tif"]  # once each
    assert (made.num_rows, made.num_errors) == (20, 2)
    rows = rows_of(output)
    names = ["a.tif"] * 6 + ["none.tif"] + ["north/b.tif"] * 4 + ["north/sparse.tif"] * 5 + ["torn.tif"] * 4
    assert [row["scene"] for row in rows] == names
    by_status = {"described": [], "skipped": [], "error": []}
    for row in rows:
        by_status[row["status"]].append((row["scene"], row["tile"]))
    assert by_status["error"] == [("none.tif", None), ("torn.tif", 0)]
    assert by_status["skipped"] == [("north/b.tif", 0), *(("north/sparse.tif", number) for number in (2, 3, 4))]
    errors = {row["scene"]: row["error"] for row in rows if row["error"]}
    assert "none.tif is not a raster" in errors["none.tif"] and "cannot be read at column 0" in errors["torn.tif"]
    # each described row is that of the scene alone, in the same columns
    assert describer._loaded is not None
    predictor = Predictor(*describer._loaded, describer.generation)
    task = SceneTask(describer.instruction, None, "tiny", "abc")
    columns = [name for name in rows[0] if name not in ("status", "error", "geometry")]
    for name in ("a.tif", "north/b.tif", "north/sparse.tif"):
        (result,) = describe_scenes(
            open_scenes([str(scenes / name)], 20), predictor, task, 20, 0, tmp_path / "x.parquet"
        )
        alone = rows_of(tmp_path / "x.parquet")
        ours = [row for row in rows if row["scene"] == name and row["status"] == "described"]
        assert [{column: row[column] for column in columns} for row in ours] == [
            {**{column: row[column] for column in columns}, "scene": name} for row in alone
        ]
        assert [*alone[0]] == [*columns, "geometry"] and len({row["caption"] for row in ours}) > 1
        frame = geopandas.read_parquet(output, filters=[("scene", "==", name), ("status", "==", "described")])
        assert frame.crs.equals("OGC:CRS84") and [*frame.columns] == [*columns, "status", "error", "geometry"]
        for shape, tile in zip(frame.geometry, result.tiles, strict=True):
            place = footprint.footprint(result.raster, tile.window)
            assert (shape and json.loads(json.dumps(shape.__geo_interface__))) == json.loads(json.dumps(place))
        records = json.loads(pq.read_schema(output).metadata[METADATA])["scenes"]
        (record,) = [record for record in records if record["scene"] == name]
        expected = {key: value for key, value in result.record().items() if key in record and key != "scene"}
        assert {key: record[key] for key in expected} == {**expected, "notes": record["notes"]}
        assert {"mentioned", "tiles", "skipped", "stretch", "crs"} <= set(expected) and "caption" not in record
    assert [record["scene"] for record in records] == list(dict.fromkeys(names)) and "error" in records[1]
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".parquet"] == []


@pytest.mark.slow
def test_a_stopped_run_continues(describer: TileCaptioner, scenes: Path, tmp_path: Path) -> None:
    """Also where it stopped while sparse tiles were described, and one scene is another since."""
    copy = tmp_path / "scenes"
    (copy / "north").mkdir(parents=True)
    for file in scenes.rglob("*.*"):
        (copy / file.relative_to(scenes)).write_bytes(file.read_bytes())
    output, whole = tmp_path / "out.parquet", tmp_path / "whole.parquet"
    with pytest.raises(Stopped):
        describe_collection(describer, find_tiles([str(copy)], CUT), output, LocalEngine(), 2, stop_after(8))
    write_raster(copy / "a.tif", noise(3, 40, 60, seed=1), **UTM)
    write_raster(copy / "none.tif", noise(3, 20, 20, seed=2), **UTM)
    tiles = find_tiles([str(copy)], CUT)
    num_calls = 0

    def stop(message: str, done: float, total: float, unit: str) -> None:
        nonlocal num_calls
        num_calls += done == 18  # the second time two sparse tiles are left
        if num_calls == 2:
            raise Stopped

    with pytest.raises(Stopped):
        describe_collection(describer, tiles, output, LocalEngine(), 1, stop)
    made = describe_collection(describer, tiles, output, LocalEngine(), 3)
    assert (made.num_rows, made.num_errors, made.num_described) == (20, 1, 2)
    describe_collection(describer, tiles, whole, LocalEngine(), 4)
    assert pq.read_table(output).equals(pq.read_table(whole))
    other = TileCaptioner(describer.checkpoint, describer.instruction, describer.generation, Cut(tile=20, overlap=5))
    with pytest.raises(Stopped):
        describe_collection(describer, tiles, output, LocalEngine(), 2, stop_after(2), overwrite=True)
    with pytest.raises(RSMoEError, match="begun with other settings .overlap was 0, is 5"):
        describe_collection(other, tiles, output, LocalEngine(), 2, overwrite=True)


@pytest.mark.ray
@pytest.mark.skipif(not os.path.isdir("/proc"), reason="finds the workers in /proc")
def test_a_lost_machine_loses_and_doubles_nothing(
    describer: TileCaptioner, scenes: Path, tmp_path: Path, monkeypatch
) -> None:
    """Two machines of a Ray cluster, of which one is lost while tiles of one scene are described on both."""
    RayEngine().require()
    from ray.cluster_utils import Cluster

    # Workers import this module, to unpickle the checkpoint's source.
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    # A machine is asked for its health often, so that its loss is known soon.
    health = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 2}
    head = {"num_cpus": 1, "object_store_memory": 128 * 2**20, "_system_config": health}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    lost = cluster.add_node(num_cpus=1, object_store_memory=128 * 2**20)
    tiles = find_tiles([str(scenes)], CUT)
    killed: list[int] = []

    def lose_one(message: str, done: float, total: float, unit: str) -> None:
        if done and not killed:
            killed.append(1)
            cluster.remove_node(lost, allow_graceful=False)

    try:
        engine = RayEngine(address=cluster.address)
        made = describe_collection(describer, tiles, tmp_path / "ray.parquet", engine, 1, lose_one)
    finally:
        cluster.shutdown()
    assert killed and (made.num_rows, made.num_errors) == (20, 2)
    describe_collection(describer, tiles, tmp_path / "local.parquet", LocalEngine(), 4)
    ours, theirs = (pq.read_table(tmp_path / name) for name in ("ray.parquet", "local.parquet"))
    assert ours.equals(theirs) and ours.schema.metadata == theirs.schema.metadata


def test_a_raster_travels_as_it_was_measured(scenes: Path, monkeypatch) -> None:
    tile = find_tiles([str(scenes)], CUT)[3]
    with open_raster(scenes / "a.tif", (3, 2, 1)) as raster:
        pixels = np.asarray(raster.read(max_side=30).image)
    monkeypatch.setattr(Raster, "_prepare", None)
    with pickle.loads(pickle.dumps(raster)) as sent:
        assert (sent.stretch, sent.bands, sent.crs) == (raster.stretch, (3, 2, 1), raster.crs)
        assert np.array_equal(np.asarray(sent.read(max_side=30).image), pixels)
        assert (tile.scene.raster is not None) and pickle.loads(pickle.dumps(tile)).key == tile.key == "3 a.tif"


def test_stac_collections(scenes: Path, tmp_path: Path) -> None:
    """A static collection, and items in a list: what is wrong with one costs that one."""
    (tmp_path / "items").mkdir()
    save(tmp_path / "items/1.json", item("one", visual=asset(str(scenes / "a.tif"))))
    save(tmp_path / "items/2.json", item("two", red=asset("r.tif"), green=asset("g.tif")))
    save(tmp_path / "items/3.json", item("three", visual=asset(str(scenes / "north/b.tif"))))
    links = [{"rel": "item", "href": f"./items/{number}.json"} for number in (1, 2, 4)]
    links.append({"rel": "item", "href": "https://example.com/x.json"})
    child = {
        "type": "Catalog",
        "links": [{"rel": "item", "href": "items/3.json"}, {"rel": "child", "href": "all.json"}],
    }
    save(tmp_path / "child.json", child)
    path = save(
        tmp_path / "all.json", {"type": "Collection", "links": [{"rel": "child", "href": "child.json"}, *links]}
    )
    tiles = find_tiles([path], CUT)
    found = {tile.scene.name: tile.scene.error for tile in tiles}
    assert [*found] == ["one", "two", str(tmp_path / "items/4.json"), "https://example.com/x.json", "three"]
    assert "has 2 rasters" in found["two"] and "there is no file" in found[str(tmp_path / "items/4.json")]
    assert "allow it by --remote" in found["https://example.com/x.json"]
    assert [tile.number for tile in tiles] == [*range(6), None, None, None, *range(4)]
    (tmp_path / "list.txt").write_text("items/1.json\nitems/3.json\nlost.tif\n")
    assert [tile.scene.name for tile in find_tiles([str(tmp_path / "list.txt")], CUT)] == ["one"] * 6 + [
        "three"
    ] * 4 + ["lost.tif"]
    twice = save(tmp_path / "twice.json", collection(*[item("one", visual=asset(str(scenes / "a.tif")))] * 2))
    with pytest.raises(
        RSMoEError, match="1 scenes stand in the collection more than once, such as one: name each once"
    ):
        find_tiles([twice], CUT)


@pytest.mark.slow
def test_from_the_command_line(checkpoint: Path, scenes: Path, tmp_path: Path) -> None:
    options = ("--model", checkpoint, "--router", "template", "--max-new-tokens", 6)
    output = tmp_path / "out.parquet"
    cut = ("--tile", 20, "--overlap", 10, "--bands", "1")
    result = run("caption", scenes, *options, *cut, "--output", output)
    assert result.exit_code == 0, result.stderr
    rows = rows_of(output)
    assert result.stdout.startswith(f"{output} ({len(rows)} rows, 3 with an error") and " tiles/s" in result.stdout
    alone = tmp_path / "alone.parquet"
    assert run("caption", scenes / "a.tif", *options, *cut, "--output", alone).exit_code == 0
    ours = [row for row in rows if row["scene"] == "a.tif"]
    assert [row["caption"] for row in ours] == [row["caption"] for row in rows_of(alone)] and len(ours) == 15
    items = save(tmp_path / "items.json", collection(item("one", visual=asset(str(scenes / "a.tif")))))
    assert run("caption", items, *options, *cut, "--engine", "local", "--output", output, "--overwrite").exit_code == 0
    assert [row["caption"] for row in rows_of(output)] == [row["caption"] for row in ours]
