"""Two dates described and compared: words, outputs, resuming, Python and the command line."""

import json
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pyarrow.parquet
import pytest

from modeling_rsmoe.inference import Predictor
from modeling_rsmoe.scenes.change import describe_change
from modeling_rsmoe.scenes.change_words import NOTE, Difference, compare, summarize_differences
from modeling_rsmoe.scenes.describe import Tile, log_path
from modeling_rsmoe.scenes.grid import Window
from modeling_rsmoe.scenes.pipeline import describe_scene
from tests.cli.test_cli import errors, refuse_to_load, run
from tests.cli.test_views import data_of
from tests.scenes.rasters import UTM, noise, write_raster
from tests.tiny import tiny_model, tiny_processor


EXPERTS = ("theme", "object", "relation")


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return Predictor(tiny_model(), tiny_processor(), {"router_mode": "none", "max_new_tokens": 6})


@pytest.fixture
def dates(tmp_path: Path) -> tuple[Path, Path]:
    """Of 60 x 40 px; the first tile of 20 px has no data on the later date."""
    values = noise(3, 40, 60, seed=1)
    values[:, :20, :20] = 0
    before = write_raster(tmp_path / "before.tif", noise(3, 40, 60), nodata=0, **UTM)
    return before, write_raster(tmp_path / "after.tif", values, nodata=0, **UTM)


def tile(theme: str, thing: str, caption: str) -> Tile:
    texts = {"theme": theme, "object": thing, "relation": "A ship."}
    return Tile(0, Window(0, 0, 9, 9), 1.0, caption, {}, texts)


def test_a_noun_that_two_experts_name_on_one_date_alone() -> None:
    before = tile("This is a forest.", "Many trees in a forest.", "Many trees.")
    after = tile(
        "Buildings with a tree and a road.", "Some buildings and a road at a river.", "Buildings near a river."
    )
    difference = compare(before, after)
    assert difference.appears == {"building": ["theme", "object"], "road": ["theme", "object"]}
    assert difference.disappears == {"forest": ["theme", "object"]}, "a tree is named on both dates"
    expected = "Named after, not before: building, road. Named before, not after: forest."
    assert difference.differs and difference.text == expected
    back = compare(after, before)
    assert (back.appears, back.disappears) == (difference.disappears, difference.appears)
    by_one = compare(before, after, min_experts=1)
    assert by_one.appears == {**difference.appears, "river": ["object"]}


def test_a_base_lm_alone_has_its_caption() -> None:
    before, after = (Tile(0, Window(0, 0, 9, 9), 1.0, text, {}, {}) for text in ("A river.", "A road."))
    assert compare(before, after).appears == {"road": ["caption"]}


def test_other_words_are_no_difference() -> None:
    first, second = tile("A river.", "A tree.", "A river."), tile("A wide river.", "Some trees.", "Trees at a river.")
    assert compare(first, second).text == "No difference that two experts name."
    assert compare(first, first).text == "The same words on both dates."
    assert not compare(first, second).differs and not compare(first, first).differs
    captioned = tile("A river.", "A tree.", "A road.")
    assert compare(captioned, tile("A road.", "A road.", "A road.")).appears == {}, "the caption names it on both"


def test_a_whole_of_many_tiles() -> None:
    grown, same = Difference({"road": ["theme"], "ship": ["object"]}, {"tree": ["object"]}, False), ({}, {}, False)
    text = summarize_differences([grown, Difference({"ship": ["theme"]}, {}, False), Difference(*same)])
    assert text == (
        "In 2 of 3 tiles the descriptions name different things. Named after, not before: ship (2), road (1). "
        "Named before, not after: tree (1)."
    )


def test_tiles_of_both_dates(dates: tuple[Path, Path], predictor: Predictor) -> None:
    result = describe_change(*dates, predictor, tile=20)
    assert [one.number for one in result.tiles] == [1, 2, 3, 4, 5] and result.num_skipped == 1
    assert [one.window for one in result.tiles] == [one.after.window for one in result.tiles]
    alone = {one.number: one.text for one in describe_scene(dates[1], predictor, tile=20).tiles}
    assert [one.after.text for one in result.tiles] == [alone[number] for number in (1, 2, 3, 4, 5)]
    assert any(one.before.text != one.after.text for one in result.tiles)
    same = describe_change(dates[1], dates[1], predictor, tile=20)
    assert same.text == "In 0 of 5 tiles the descriptions name different things."
    assert {one.difference.text for one in same.tiles} == {"The same words on both dates."}
    both = describe_change(*dates, predictor, tile=20, nodata=7)
    assert both.before.raster.nodata == both.after.raster.nodata == 7


@pytest.mark.slow
def test_every_format_has_both_dates(dates: tuple[Path, Path], predictor: Predictor, tmp_path: Path) -> None:
    files = [tmp_path / f"out.{suffix}" for suffix in ("geojson", "gpkg", "parquet", "jsonl")]
    result = [describe_change(*dates, predictor, tile=20, output=file) for file in files][0]
    frames = [geopandas.read_file(files[0]).drop(columns="style"), geopandas.read_file(files[1], layer="tiles")]
    frames.append(geopandas.read_parquet(files[2]))
    columns = ["tile", "differs", "difference"]
    columns += [name for kind in ("appears", "disappears") for name in (kind, *(f"{kind}_{one}" for one in EXPERTS))]
    for name in (
        "scene",
        "caption",
        *(f"{what}_{one}" for what in ("expert_text", "router_prompt") for one in EXPERTS),
    ):
        columns += [f"{name}_before", f"{name}_after"]
    columns += ["column", "row", "width", "height", "valid", "model", "revision", "geometry"]
    for frame in frames:
        assert list(frame.columns) == columns and list(frame["tile"]) == [1, 2, 3, 4, 5]
        assert list(frame["caption_after"]) == [one.after.text for one in result.tiles]
        assert list(frame["scene_before"]) == [str(dates[0])] * 5
        assert frame.to_crs("EPSG:32633").geometry.area.to_numpy() == pytest.approx([40_000] * 5, rel=1e-3)
    record = json.loads(files[0].read_text())["rsmoe"]["scenes"][0]
    assert record == result.record() and record["note"] == NOTE and "not a change model" in NOTE
    assert record["before"]["caption"] == result.before.text and record["after"]["scene"] == str(dates[1])
    assert json.loads(pyarrow.parquet.read_schema(files[2]).metadata[b"rsmoe"])["scenes"] == [record]
    assert json.loads(geopandas.read_file(files[1], layer="scenes")["after"][0]) == record["after"]
    *lines, last = map(json.loads, files[3].read_text().splitlines())
    assert last == record and [line["tile"] for line in lines] == [1, 2, 3, 4, 5]
    assert lines[0]["before"]["caption"] == result.tiles[0].before.text and lines[0]["window"] == [20, 0, 20, 20]
    assert set(lines[0]["after"]) == {"scene", "caption", "router_prompts", "expert_texts"} and lines[0]["geometry"]


def test_a_stopped_run_continues(dates: tuple[Path, Path], predictor: Predictor, tmp_path: Path) -> None:
    output, described = tmp_path / "out.jsonl", []

    def stop(message: str, done: float = 0, total: float | None = None, unit: str = "") -> None:
        if message.endswith("after.tif") and done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        describe_change(*dates, predictor, tile=20, output=output, batch_size=1, progress=stop)
    assert log_path(output).exists() and not output.exists()

    class Counting(Predictor):
        def predict(self, images: Any, *arguments: Any) -> Any:
            described.extend(images)
            return super().predict(images, *arguments)

    again = Counting(predictor.model, predictor.processor, predictor.generation)
    result = describe_change(*dates, again, tile=20, output=output, batch_size=1)
    assert len(described) == 2, "of the later date; those that were done are not done again"
    expected = describe_change(*dates, predictor, tile=20)
    assert result.record() == expected.record() and not log_path(output).exists()


def test_the_command(dates: tuple[Path, Path], checkpoint: Path, tmp_path: Path) -> None:
    page, figure, output = tmp_path / "map.html", tmp_path / "figure.png", tmp_path / "out.jsonl"
    command = ("caption", *dates, "--change", "--tile", 20, "--model", checkpoint, "--router", "none")
    result = run(*command, "--map", page, "--figure", figure, "--output", output)
    assert result.exit_code == 0, result.stderr
    shown = " ".join(result.stdout.replace("│", " ").split())
    assert "not a change model: they also differ where nothing has changed" in shown and "before" in shown
    assert f"{output} (5 tiles, 1 skipped as mostly no data)" in shown
    (view,) = data_of(page)
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert [one["after"]["text"] for one in view["tiles"]] == [line["after"]["caption"] for line in lines[:-1]]
    assert view["difference"] == lines[-1]["difference"] and view["note"] == NOTE
    assert view["after"]["name"] == dates[1].name and view["after"]["image"] != view["image"]
    assert figure.stat().st_size > 0
    *tiles, record = map(json.loads, run(*command, "--json").stdout.splitlines())
    assert record == lines[-1] and tiles == lines[:-1]


def test_what_is_refused_before_a_model_is_loaded(
    dates: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_to_load(monkeypatch)
    before, after = dates
    photo = write_raster(tmp_path / "photo.tif", np.ones((3, 40, 60), "uint8"))
    for inputs, message in (
        ((before,), "two scenes, the earlier one first, not of 1"),
        ((before, after, after), "not of 3: give two; of more dates compare two at a time"),
        ((before, photo), "photo.tif has no"),
    ):
        (line,) = errors(run("caption", *inputs, "--change"))
        assert message in line
