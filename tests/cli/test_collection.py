"""Image collections from the command line: captions of folders and lists, features, and questions about features."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from modeling_rsmoe.collection import pipeline
from modeling_rsmoe.inference.checkpoint import revision_of
from tests.cli.test_cli import errors, refuse_to_load, run
from tests.scenes.rasters import UTM, noise, write_raster
from tests.tiny import tiny_model, tiny_processor


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, generator = tmp_path_factory.mktemp("images") / "tiles", np.random.default_rng(1)
    folder.mkdir()
    for name in ("a.png", "b.png", "c.png"):
        Image.fromarray(generator.integers(0, 256, (30, 40, 3), np.uint8)).save(folder / name)
    (folder / "bad.jpg").write_text("no image")
    return folder


def rows_of(file: Path) -> dict[str, dict[str, Any]]:
    return {row["image"]: row for row in pq.read_table(file).to_pylist()}


def test_captions_of_a_folder_and_of_a_list(tiles: Path, checkpoint: Path, tmp_path: Path) -> None:
    options = ("--model", checkpoint, "--router", "template", "--max-new-tokens", 6, "--instruction", "Say it.")
    result = run("caption", tiles, *options, "--output", tmp_path / "new" / "out.parquet", "--batch-size", 2)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith(
        f"{tmp_path / 'new' / 'out.parquet'} (4 rows, 1 with an error)"
    )  # two shards: no rate
    rows = rows_of(tmp_path / "new" / "out.parquet")
    assert list(rows) == ["a.png", "b.png", "bad.jpg", "c.png"] and "is not an image" in rows["bad.jpg"]["error"]
    alone = json.loads(run("caption", tiles / "b.png", *options, "--json").stdout)
    assert all(rows["b.png"][name] == alone[name] for name in ("caption", "expert_texts", "router_prompts", "model"))
    assert rows["b.png"]["revision"] == revision_of(checkpoint) and len(rows["b.png"]["revision"]) == 12
    (tmp_path / "list.txt").write_text(f"{tiles / 'c.png'}\n{tiles / 'a.png'}\n")
    output = tmp_path / "new" / "out.parquet"
    assert run("caption", tmp_path / "list.txt", *options, "--output", output, "--overwrite").exit_code == 0
    again = rows_of(output)
    assert list(again) == [str(tiles / "c.png"), str(tiles / "a.png")]
    assert again[str(tiles / "c.png")]["caption"] == rows["c.png"]["caption"]


@pytest.mark.slow
def test_questions_about_features(tiles: Path, checkpoint: Path, tmp_path: Path) -> None:
    """The answers are those about the images themselves."""
    model, output = ("--model", checkpoint), tmp_path / "features"
    result = run("encode", tiles, *model, "--output", output, "--dtype", "float32")
    assert result.exit_code == 0 and f"{output} (4 rows, 1 with an error" in result.stdout, result.stderr
    asked = run("ask", output, "Is there a road?", *model, "--json", "--batch-size", 2)
    assert asked.exit_code == 0 and "1 of 4 images have no features, and no answer" in asked.stderr
    answers = [json.loads(line) for line in asked.stdout.splitlines()]
    assert [answer["image"] for answer in answers] == ["a.png", "b.png", "c.png"]
    assert len({answer["answer"] for answer in answers}) > 1
    for answer in answers:
        from_image = json.loads(run("ask", tiles / answer["image"], "Is there a road?", *model, "--json").stdout)
        assert answer == {**from_image, "image": answer["image"]}
    # another encoder would read them as noise
    tiny_model(seed=1).save_pretrained(tmp_path / "other")
    tiny_processor().save_pretrained(tmp_path / "other")
    (line,) = errors(run("ask", output, "Why?", "--model", tmp_path / "other"))
    assert "were made by another image encoder" in line and "encode the images again" in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["caption", "TILES"],
            "tiles: captions of a collection (a folder, a list) go into a Parquet: give --output NAME.parquet",
        ),
        (["caption", "TILES", "--output", "OUT/x.geojson"], "give --output NAME.parquet, not x.geojson"),
        (
            ["caption", "TILES", "--output", "OUT/x.parquet", "--remote"],
            "--remote is for scenes: add --tile to cut the files into tiles, or leave it out",
        ),
        (
            ["caption", "TILES", "--output", "OUT/x.parquet", "--tile", "64", "--stretch", "image"],
            "--stretch is of images; every scene has its own",
        ),
        (
            ["caption", "TILES", "--output", "OUT/x.geojson", "--tile", "64"],
            "give --output NAME.parquet, not x.geojson",
        ),
        (["caption", "TILES", "--output", "OUT/x.parquet", "--tile", "4"], "a tile of 4 px shows nothing"),
        (
            ["caption", "TILES", "--output", "OUT/x.parquet", "--tile", "64", "--map", "OUT/x.html", "--json"],
            "--json, --map cannot be combined with a folder, a list or --engine",
        ),
        (["caption", "TILES", "--output", "OUT/x.parquet", "--tile", "64", "--dtype", "int8"], "--dtype is not for a"),
        (["caption", "TILES", "--output", "OUT/x.parquet", "--tile", "64"], "TILES holds no images (ending in .img"),
        (["caption", "TILES", "--output", "OUT/x.parquet", "--json"], "--json cannot be combined with a folder"),
        (
            ["caption", "TILES", "--output", "TILES/a.parquet", "--workers", "2"],
            "--workers is an option of the Ray engine",
        ),
        (["caption", "lost.txt", "--output", "OUT/x.parquet"], "there is no file lost.txt"),
        (["encode", "OUT", "--output", "OUT/x.parquet"], "holds no images"),
        (["encode", "TILES", "--output", "TILES"], "the folder TILES exists: give --output another name"),
        (
            ["encode", "TILES", "--output", "OUT/x.parquet", "--address", "auto"],
            "--address is an option of the Ray engine",
        ),
        (["encode", "TILES", "--output", "OUT/x.parquet", "--dtype", "int8"], "'int8' is not one of"),
        (["ask", "OUT/x.parquet", "Why?"], "there is no file OUT/x.parquet: check the path"),
        (["ask", "OUT/x.parquet", "Why?", "--tile", "64"], "are of scenes; answers about features are printed"),
    ],
)
def test_wrong_usage(
    arguments: list[str], message: str, tiles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_to_load(monkeypatch)

    def placed(text: str) -> str:
        return text.replace("TILES", str(tiles)).replace("OUT", str(tmp_path))

    lines = errors(run(*map(placed, arguments)))
    assert len(lines) == 1 and placed(message) in lines[0]
    assert list(tmp_path.iterdir()) == []


def test_interruption_says_how_to_continue(
    tiles: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    command = ("encode", tiles, "--model", checkpoint, "--output", tmp_path / "x.parquet", "--batch-size", 2)
    with monkeypatch.context() as patch:
        patch.setattr(pipeline.Store, "add", interrupt)  # after the first shard
        result = run(*command)
    assert result.exit_code == 130 and result.stdout == ""
    note = f"finished images are kept in {tmp_path / 'x.parquet'}.shards: the same command goes on from there"
    assert note in result.stderr and result.stderr.endswith("rsmoe: interrupted\n")
    result = run(*command)
    assert result.exit_code == 0 and "(4 rows, 1 with an error, 2 described now" in result.stdout


def test_special_tokens(tiles: Path, checkpoint: Path, tmp_path: Path) -> None:
    command = ("caption", tiles, "--model", checkpoint, "--output", tmp_path / "x.parquet")
    (line,) = errors(run(*command, "--instruction", "Ask <theme>."))
    assert "holds <theme>, which only the model's own sequences may" in line


@pytest.mark.slow
def test_chips_of_many_bands_in_a_folder(checkpoint: Path, tmp_path: Path) -> None:
    """Refused without a choice: exit code 1 and the commonest reason; with one, described as each is alone."""
    (tmp_path / "chips").mkdir()
    for number in range(3):
        write_raster(tmp_path / "chips" / f"{number}.tif", noise(13, 40, 40, seed=number) + 500 * number, **UTM)
    (tmp_path / "chips" / "text.tif").write_text("no image")
    options = (
        "--model",
        checkpoint,
        "--router",
        "template",
        "--max-new-tokens",
        4,
        "--output",
        tmp_path / "o.parquet",
    )
    refused = run("caption", tmp_path / "chips", *options)
    assert refused.exit_code == 1 and "(4 rows, 4 with an error)" in refused.stdout
    assert "none of the images could be read; of 3: ... has 13 bands" in refused.stderr
    for stretch in ("image", "collection"):
        chosen = ("--bands", "4,3,2", "--nodata", 0, "--stretch", stretch, "--overwrite")
        assert run("caption", tmp_path / "chips", *options, *chosen).exit_code == 0
        rows = rows_of(tmp_path / "o.parquet")
        assert [name for name, row in rows.items() if row["error"] is None] == ["0.tif", "1.tif", "2.tif"]
    settings = json.loads(pq.read_schema(tmp_path / "o.parquet").metadata[b"rsmoe"])["settings"]
    assert settings["bands"] == [4, 3, 2] and settings["nodata"] == 0 and len(settings["stretch"]["low"]) == 3
    (line,) = errors(run("caption", tmp_path / "chips" / "text.tif", "--stretch", "image"))
    assert "--stretch is of a folder or list" in line
