"""Scenes on the command line: which inputs are scenes, what is written and shown, what is refused early."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modeling_rsmoe.cli import scenes
from tests.cli.test_cli import errors, refuse_to_load, run
from tests.scenes.rasters import UTM, noise, write_raster
from tests.scenes.test_stac import asset, item, save


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    values = noise(3, 40, 60)
    values[:, :20, :20] = 0
    return write_raster(tmp_path / "scene.tif", values, nodata=0, **UTM)


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_to_load(monkeypatch)


def test_which_inputs_are_scenes(tmp_path: Path) -> None:
    def tiff(name: str, *shape: int, **options: Any) -> str:
        return str(write_raster(tmp_path / name, np.zeros(shape, "uint8"), **options))

    images = [
        tiff("tile.tif", 3, 512, 512, **UTM),  # as the demo's: placed on the earth, but no larger than a tile
        tiff("image.tif", 3, 600, 600),
        str(tmp_path / "photo.png"),
        "https://example.com/a.tif",
        str(tmp_path / "lost.tif"),
    ]
    found = [
        tiff("large.tif", 3, 513, 20, **UTM),
        tiff("bands.tif", 5, 20, 20),
        tiff("bigtiff.tif", 1, 600, 600, BIGTIFF="YES", **UTM),
        "/vsizip/a.zip/b.tif",
        "s3://bucket/a.png",
        "item.json",
        "mosaic.vrt",
        "scene.zip",
    ]
    assert scenes.split([*images, *found], scenes.SceneOptions()) == (images, found)
    assert scenes.split(images, scenes.SceneOptions(tile=100)) == ([], images)


def test_caption_a_scene(scene: Path, checkpoint: Path, tmp_path: Path) -> None:
    output = tmp_path / "deep" / "out.geojson"
    command = ("caption", scene, "--tile", 20, "--model", checkpoint, "--router", "none", "--output", output)
    result = run(*command)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.splitlines()[-1] == f"{output} (5 tiles, 1 skipped as mostly no data)"
    assert "mentioned" in result.stdout and f"describing {scene} ..." in result.stderr
    collection = json.loads(output.read_text())
    assert [feature["properties"]["tile"] for feature in collection["features"]] == [1, 2, 3, 4, 5]
    record = collection["rsmoe"]["scenes"][0]
    assert (record["tiles"], record["skipped"], len(record["revision"])) == (5, 1, 12)
    assert [file.name for file in output.parent.iterdir()] == ["out.geojson"]
    assert errors(run(*command)) == [f"{output} exists: give another name, or --overwrite"]
    assert run(*command, "--overwrite", "--json").stdout == json.dumps(record) + "\n"


def test_tiles_on_stdout(scene: Path, checkpoint: Path) -> None:
    command = (
        "caption",
        scene,
        "--tile",
        20,
        "--overlap",
        5,
        "--bands",
        "2",
        "--model",
        checkpoint,
        "--router",
        "none",
    )
    *tiles, record = map(json.loads, run(*command, "--json").stdout.splitlines())
    assert record["bands"] == [2] and record["overlap"] == 5 and len(tiles) == record["tiles"]
    assert {"window", "caption", "router_prompts", "expert_texts", "geometry"} <= set(tiles[0])
    shown = run(*command).stdout
    assert all(f"tile {tile['tile']} " in shown for tile in tiles[:3]) and "tiles" in shown


def test_tiles_are_printed_as_they_come(scene: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from modeling_rsmoe.inference import Predictor

    predict, calls = Predictor.predict, []

    def stops(predictor: Predictor, images: Any, *arguments: Any) -> Any:
        calls.append(len(images))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return predict(predictor, images, *arguments)

    monkeypatch.setattr(Predictor, "predict", stops)
    command = ("caption", scene, "--tile", 20, "--model", checkpoint, "--router", "none", "--batch-size", 1, "--json")
    stopped = run(*command)
    assert stopped.exit_code == 130
    assert [json.loads(line)["tile"] for line in stopped.stdout.splitlines()] == [1, 2]


def test_ask_a_scene(scene: Path, checkpoint: Path) -> None:
    command = ("ask", scene, "How many ships are there?", "--tile", 20, "--model", checkpoint, "--router", "none")
    record = json.loads(run(*command, "--json").stdout.splitlines()[-1])
    assert record["question"] == "How many ships are there?" and record["how"] and record["tiles"] == 5
    shown = run(*command).stdout
    assert "combined" in shown and "How many ships are there?" in shown


def test_a_stac_item(scene: Path, checkpoint: Path, tmp_path: Path) -> None:
    bands = {name: asset(str(write_raster(tmp_path / f"{name}.tif", noise(1, 30, 30), **UTM))) for name in "rgb"}
    path = save(tmp_path / "item.json", item(visual=asset("scene.tif"), **bands))
    for options, size in [((), (60, 40)), (("--bands", "r,g,b"), (30, 30)), (("--asset", "b"), (30, 30))]:
        command = ("caption", path, "--model", checkpoint, "--router", "none", "--json", *options)
        record = json.loads(run(*command).stdout.splitlines()[-1])
        assert record["scene"] == "S2A_1" and (record["width"], record["height"]) == size


def test_a_stopped_run_continues(
    scene: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from modeling_rsmoe.inference import Predictor

    predict, calls = Predictor.predict, []

    def stops(predictor: Predictor, images: Any, *arguments: Any) -> Any:
        calls.append(len(images))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return predict(predictor, images, *arguments)

    output = tmp_path / "out.jsonl"
    command = ("caption", scene, "--tile", 20, "--model", checkpoint, "--router", "none", "--output", output)
    monkeypatch.setattr(Predictor, "predict", stops)
    stopped = run(*command, "--batch-size", 1)
    assert stopped.exit_code == 130 and "the same command goes on from there" in stopped.stderr
    assert not output.exists() and Path(f"{output}.partial").exists()
    assert "other settings (overlap: 0, now 4)" in errors(run(*command, "--overlap", 4))[0]
    assert run(*command, "--batch-size", 1).exit_code == 0
    assert calls == [1] * 3 + [1] * 3, "the two tiles that were done are not done again"
    assert len(output.read_text().splitlines()) == 6 and not Path(f"{output}.partial").exists()


def test_a_full_disk(scene: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    output = tmp_path / "out.gpkg"
    monkeypatch.setattr("modeling_rsmoe.scenes.pipeline.write", full)
    result = run("caption", scene, "--tile", 20, "--model", checkpoint, "--router", "none", "--output", output)
    (line,) = errors(result)
    assert "No space left on device" in line and "run the same command to go on" in line
    assert not output.exists() and Path(f"{output}.partial").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--tile", 0), "a tile of 0 px shows nothing: --tile takes at least 8"),
        (("--overlap", 512), "an overlap of 512 px does not fit tiles of 512 px"),
        (("--bands", "1,2,3,1"), "--bands '1,2,3,1': choose one, three for red, green and blue, or a radar's two"),
        (("--bands", "7"), "has no band '7'; it has 1 red, 2 green, 3 blue"),
        (("--output", "out.shp"), "out.shp ends in none of .geojson, .gpkg, .parquet, .jsonl"),
    ],
)
def test_what_is_refused_before_a_model_is_loaded(
    tmp_path: Path, options: tuple[Any, ...], message: str, no_model: None
) -> None:
    path = write_raster(tmp_path / "a.tif", noise(3, 20, 20), photometric="rgb")
    assert message in errors(run("caption", path, *options))[0]


def test_every_bad_scene_has_its_line(tmp_path: Path, no_model: None) -> None:
    (tmp_path / "text.tif").write_text("no raster")
    complex_values = write_raster(tmp_path / "c.tif", np.ones((1, 20, 20), "complex64"))
    lines = errors(run("caption", tmp_path / "text.tif", complex_values, tmp_path / "lost.tif", "--tile", 100))
    for line, part in zip(lines, ("is not a raster", "holds complex values", "there is no file"), strict=True):
        assert part in line


def test_a_note_of_a_scene_without_a_place(tmp_path: Path, checkpoint: Path) -> None:
    path = write_raster(tmp_path / "a.tif", noise(1, 20, 20))
    result = run("caption", path, "--tile", 100, "--model", checkpoint, "--router", "none", "--json")
    assert "rsmoe: note: " in result.stderr and "has no geotransform" in result.stderr
    assert json.loads(result.stdout.splitlines()[0])["geometry"] is None
