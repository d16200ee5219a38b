"""A scene from Python: the documented lines, questions, several scenes, a stopped run."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from modeling_rsmoe import RSMoEError
from modeling_rsmoe.inference import Predictor
from modeling_rsmoe.prompting_rsmoe import DEFAULT_INSTRUCTION
from modeling_rsmoe.scenes.answers import CombinedAnswer
from modeling_rsmoe.scenes.describe import log_path
from modeling_rsmoe.scenes.pipeline import describe_scene, describe_scenes, open_scenes
from modeling_rsmoe.scenes.result import SceneTask
from modeling_rsmoe.utils.rasters.raster import open_raster
from tests.scenes.rasters import UTM, noise, write_raster
from tests.scenes.test_stac import asset, collection, item, save
from tests.test_site import python_of
from tests.tiny import tiny_model, tiny_processor


DOCUMENT = Path(__file__).parents[2] / "docs" / "how-to" / "scenes.md"


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return Predictor(tiny_model(), tiny_processor(), {"router_mode": "none", "max_new_tokens": 6})


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    return write_raster(tmp_path / "scene.tif", noise(3, 40, 60), **UTM)


def test_the_documented_lines(checkpoint: Path, tmp_path: Path, scene: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(checkpoint, tmp_path / "rs-moe-nano")  # a folder goes before the name of a checkpoint
    for name in ("before.tif", "after.tif"):
        write_raster(tmp_path / name, noise(3, 40, 60), **UTM)
    write_raster(tmp_path / "chip.tif", noise(4, 40, 60), **UTM)
    names: dict[str, Any] = {}
    for code, why_not in python_of(DOCUMENT):
        if why_not is None:
            exec(code, names)
    result = names["result"]
    assert result.text and result.record()["caption"] == result.text
    assert [tile.window for tile in result.tiles] == [(0, 0, 60, 40)] and set(result.tiles[0].expert_texts)
    assert result.task.model.endswith("rs-moe-nano") and len(result.task.revision) == 12
    assert (tmp_path / "scene.geojson").is_file() and names["overview"].image.size == (60, 40)


def test_a_question(scene: Path, predictor: Predictor) -> None:
    told: list[Any] = []
    result = describe_scene(
        scene, predictor, question="How many ships?", tile=20, batch_size=4, progress=lambda *step: told.append(step)
    )
    assert isinstance(result.outcome, CombinedAnswer) and len(result.tiles) == 6
    assert result.record()["question"] == "How many ships?" and result.record()["answer"] == result.text
    assert told == [(f"describing {scene}", done, 6, "tiles") for done in (0, 4, 6)]
    assert set(result.tiles[0].router_prompts.values()) == {result.task.instruction} != {"How many ships?"}


def test_an_open_raster_and_bands(scene: Path, predictor: Predictor) -> None:
    with open_raster(scene, bands=(2,)) as raster:
        gray = describe_scene(raster, predictor, tile=20, overlap=5)
    assert gray.record()["bands"] == [2] and gray.grid.overlap == 5
    again = describe_scene(scene, predictor, tile=20, overlap=5, bands=(2,))
    assert [tile.text for tile in again.tiles] == [tile.text for tile in gray.tiles] and again.text == gray.text


def test_several_scenes_in_one_output(scene: Path, predictor: Predictor, tmp_path: Path) -> None:
    path = save(tmp_path / "all.json", collection(*(item(name, visual=asset("scene.tif")) for name in "ab")))
    with pytest.raises(RSMoEError, match="all.json has 2 scenes: give them to describe_scenes"):
        describe_scene(path, predictor)
    task = SceneTask(DEFAULT_INSTRUCTION, None, "tiny", "")
    first, second = describe_scenes(open_scenes([path]), predictor, task, output=tmp_path / "all.jsonl")
    assert (first.raster.name, second.raster.name) == ("a", "b") and first.text == second.text
    assert len((tmp_path / "all.jsonl").read_text().splitlines()) == 4


def test_what_is_refused(scene: Path, predictor: Predictor, tmp_path: Path) -> None:
    for options, message in (
        ({"output": tmp_path / "x.shp"}, "ends in none of"),
        ({"tile": 4}, "a tile of 4 px"),
        ({"instruction": "Say <theme>."}, "holds <theme>"),
        ({"bands": (7,)}, "has no band"),
    ):
        with pytest.raises(RSMoEError, match=message):
            describe_scene(scene, predictor, **options)  # type: ignore[arg-type]
    with pytest.raises(RSMoEError, match=r"there is no file.*\n.*there is no file"):
        open_scenes([str(tmp_path / "a.tif"), str(tmp_path / "b.tif")])


def test_a_stopped_run_continues(scene: Path, predictor: Predictor, tmp_path: Path) -> None:
    output = tmp_path / "out.geojson"

    def stop(message: str, done: float = 0, total: float | None = None, unit: str = "") -> None:
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        describe_scene(scene, predictor, tile=20, output=output, batch_size=2, progress=stop)
    assert log_path(output).exists() and not output.exists()
    other = Predictor(predictor.model, predictor.processor, {"router_mode": "none"})
    with pytest.raises(RSMoEError, match="other settings .max_new_tokens: 6, now null"):
        describe_scene(scene, other, tile=20, output=output)
    result = describe_scene(scene, predictor, tile=20, output=output)
    assert result.text == describe_scene(scene, predictor, tile=20).text
    assert output.exists() and not log_path(output).exists()


def test_a_narrow_scene_is_described(predictor: Predictor, tmp_path: Path) -> None:
    """Its overview of 1,024 px would be 7 px high."""
    path = write_raster(tmp_path / "narrow.tif", noise(3, 40, 6000, "uint8", 255), **UTM)
    assert len(describe_scene(path, predictor, tile=2000).tiles) == 3


def test_another_choice_of_scenes_continues_and_another_way_to_read_does_not(
    scene: Path, predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, other = tmp_path / "out.jsonl", write_raster(tmp_path / "other.tif", noise(3, 30, 30), **UTM)
    task = SceneTask(DEFAULT_INSTRUCTION, None, "tiny", "")
    problems: list[str] = []
    monkeypatch.setattr("modeling_rsmoe.scenes.pipeline.summarize", fails_for("other.tif"))
    rasters = open_scenes([str(other), str(scene)])
    assert len(describe_scenes(rasters, predictor, task, output=output, problems=problems)) == 1 and problems
    monkeypatch.undo()
    with pytest.raises(RSMoEError, match=r"other settings \(.*, bands: \[1, 2, 3\], now \[3, 2, 1\]\)"):
        describe_scenes(open_scenes([str(scene)], bands=(3, 2, 1)), predictor, task, output=output)
    monkeypatch.setattr(Predictor, "predict", lambda *arguments: pytest.fail("a finished tile is done again"))
    assert len(describe_scenes(open_scenes([str(scene)]), predictor, task, output=output)) == 1


def fails_for(name: str) -> Any:
    from modeling_rsmoe.scenes.summary import summarize

    def summarize_or_fail(tiles: Any, raster: Any, *arguments: Any) -> Any:
        if raster.name.endswith(name):
            raise RSMoEError("it broke")
        return summarize(tiles, raster, *arguments)

    return summarize_or_fail


def test_a_bad_scene_beside_good_ones_is_told(scene: Path, tmp_path: Path) -> None:
    problems: list[str] = []
    paths = [str(tmp_path / "lost.tif"), str(scene)]
    assert [raster.name for raster in open_scenes(paths, problems=problems)] == [str(scene)]
    assert len(problems) == 1 and "there is no file" in problems[0]
    with pytest.raises(RSMoEError, match="there is no file"):
        open_scenes(paths[:1], problems=[])
