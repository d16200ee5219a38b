"""How sure the model is, through every door: terminal, JSON, scenes, collections, the server, the demo's page."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from openai import BadRequestError
from PIL import Image

from modeling_rsmoe.inference.checkpoint import load
from modeling_rsmoe.inference.predict import Prediction, Predictor
from modeling_rsmoe.prompting_rsmoe import UNSURE
from modeling_rsmoe.scenes.pipeline import _settings
from modeling_rsmoe.scenes.result import SceneTask
from modeling_rsmoe.utils import columns
from modeling_rsmoe.utils.html import render
from tests.cli.test_cli import errors, run
from tests.serving.conftest import noise, serving
from tests.test_confidence import RATED


@pytest.fixture(scope="module")
def rated(shared_checkpoint: Callable[..., Path]) -> Path:
    """The tiny checkpoint, fitted to say how sure it is."""
    return shared_checkpoint(**RATED)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    for seed in range(2):
        noise(seed).save(tmp_path / "images" / f"{seed}.png")
    return tmp_path / "images"


def columns_of(table: columns.Columns) -> set[str]:
    experts = ("theme", "object", "relation")
    return {name.replace(columns.EXPERT, expert) for name in table if columns.EXPERT in name for expert in experts} | {
        name for name in table if columns.EXPERT not in name
    }


def test_terminal_and_json(rated: Path, folder: Path) -> None:
    image = folder / "0.png"
    told = json.loads(run("caption", image, "--model", rated, "--json").stdout)
    assert 0 < told["confidence"] < 1 and set(told["expert_confidences"]) == {"theme", "object", "relation"}
    shown = run("caption", image, "--model", rated).stdout
    assert f"{100 * told['confidence']:.0f} %" in shown and "%: how likely it is right" in shown
    assert "how likely" in run("ask", image, "Is there a road?", "--model", rated).stdout
    unsure = json.loads(run("caption", image, "--model", rated, "--json", "--min-confidence", 1).stdout)
    assert unsure == {**told, "caption": UNSURE["caption"]}
    answered = run("ask", image, "Is there a road?", "--model", rated, "--json", "--min-confidence", 1).stdout
    assert json.loads(answered)["answer"] == UNSURE["question"]


def test_a_limit_needs_a_model_that_knows(checkpoint: Path, rated: Path, folder: Path) -> None:
    image = folder / "0.png"
    (problem,) = errors(run("caption", image, "--model", checkpoint, "--min-confidence", 0.5))
    assert (
        problem == "min_confidence needs what says how sure it is, and this does not: fit it by rsmoe train confidence"
    )
    refused = run("caption", image, "--model", rated, "--min-confidence", 1.5)
    assert refused.exit_code == 2 and "--min-confidence" in refused.stderr


def test_tiles_of_a_scene(rated: Path, tmp_path: Path) -> None:
    pytest.importorskip("rasterio", reason='no rasterio here: pip install "rsmoe[geo]"')
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8)).save(tmp_path / "scene.tif")
    arguments = ("caption", tmp_path / "scene.tif", "--tile", 30, "--model", rated)
    assert run(*arguments, "--output", tmp_path / "tiles.geojson").exit_code == 0
    features = json.loads((tmp_path / "tiles.geojson").read_text())["features"]
    for feature in features:
        values = feature["properties"]
        assert 0 < values["confidence"] < 1 and 0 < values["expert_confidence_object"] < 1
        assert values["style"]["fillOpacity"] == round(values["confidence"] / 2, 2)
        assert {*values, "geometry"} <= columns_of(columns.TILE)
    least = sorted(feature["properties"]["confidence"] for feature in features)[3]
    assert run(*arguments, "--output", tmp_path / "sure.geojson", "--min-confidence", least).exit_code == 0
    sure = json.loads((tmp_path / "sure.geojson").read_text())["features"]
    for before, after in zip(features, sure, strict=True):
        is_sure = before["properties"]["confidence"] >= least
        assert after["properties"]["caption"] == (before["properties"]["caption"] if is_sure else UNSURE["caption"])
    asked = run(
        "ask", tmp_path / "scene.tif", "Is there a road?", "--tile", 30, "--model", rated, "--min-confidence", 1
    )
    assert "I do not know." in asked.stdout and "no tile is sure enough" in asked.stdout
    (problem,) = errors(run("caption", "a.tif", "b.tif", "--change", "--min-confidence", 0.5, "--model", rated))
    assert problem == "--change compares all captions, sure or not: leave --min-confidence out"


def test_a_stopped_run_goes_on_with_its_own_limit(rated: Path) -> None:
    loaded = load(str(rated), "float32")
    task = SceneTask("Describe.", None)
    limits = [None, 0.5, 0.7]
    found = [_settings(Predictor(loaded.model, loaded.processor, {"min_confidence": p}), task, 30, 0) for p in limits]
    assert [settings.get("min_confidence") for settings in found] == limits


def test_images_of_a_collection(rated: Path, folder: Path, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason='no pyarrow here: pip install "rsmoe[geo]"')
    result = run("caption", folder, "--model", rated, "--output", tmp_path / "captions.parquet")
    assert result.exit_code == 0, result.output
    rows = parquet.read_table(tmp_path / "captions.parquet").to_pylist()
    alone = json.loads(run("caption", folder / "0.png", "--model", rated, "--json").stdout)
    assert rows[0]["confidence"] == pytest.approx(alone["confidence"], abs=2e-4)
    assert rows[0]["expert_confidences"] == pytest.approx(alone["expert_confidences"], abs=2e-4)
    assert set(rows[0]) == columns_of(columns.IMAGE)


def test_the_server(rated: Path) -> None:
    loaded = load(str(rated), "float32")
    with serving(checkpoint=(loaded.model, loaded.processor)) as served:
        (expected,) = Predictor(loaded.model, loaded.processor).predict([noise(0)], "Describe.")
        steps = served.ask(noise(0)).model_extra["rsmoe"]
        assert steps["confidence"] == pytest.approx(expected.confidence, abs=2e-4)
        assert steps["expert_confidences"] == pytest.approx(expected.expert_confidences, abs=2e-4)
        asked: dict[str, Any] = {"extra_body": {"min_confidence": 1.0}}
        assert served.ask(noise(0), **asked).choices[0].message.content == UNSURE["caption"]
        pieces = [
            chunk.choices[0].delta.content for chunk in served.ask(noise(0), stream=True, **asked) if chunk.choices
        ]
        assert "".join(filter(None, pieces)) == UNSURE["caption"]
        with pytest.raises(BadRequestError, match="min_confidence"):
            served.ask(noise(0), extra_body={"min_confidence": 2})
    with serving() as served, pytest.raises(BadRequestError, match="says how sure it is, and this one does not"):
        served.ask(noise(0), **asked)


def test_the_demos_page() -> None:
    pytest.importorskip("gradio", reason='no gradio here: pip install "rsmoe[demo]"')
    from modeling_rsmoe.demo import page

    sentences = [{"text": "A port.", "writer": "theme", "confidence": 0.62}]
    of_experts = {"theme": 0.91, "object": None}
    texts: dict[str, Any] = {"expert_texts": {"theme": "A port.", "object": ""}, "expert_confidences": of_experts}
    caption = Prediction("Many ships.", confidence=0.284, **texts)
    paragraph = Prediction("A port.", sentences=sentences, confidence=0.62, **texts)
    for prediction, shown in ((caption, ["28 %", "91 %"]), (paragraph, ["62 %", "91 %"]), (Prediction("A port."), [])):
        html = render(
            Path(page.__file__).with_name("predictions.html"),
            entries=[page.Entry("Caption", prediction, True)],
            experts=["theme", "object"],
        )
        assert re.findall(r"(\d+ %) likely right", html) == shown
