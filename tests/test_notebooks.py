"""docs/tutorials: every notebook is small, and runs from top to bottom."""

import ast
import asyncio
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from modeling_rsmoe.inference import Predictor, load

from .scenes.rasters import UTM, noise, write_raster
from .tiny import speaking_model, tiny_processor


ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "docs" / "tutorials").glob("*.ipynb"))
WIDGETS = "application/vnd.jupyter.widget-state+json"
MAX_BYTES = 100_000  # a committed notebook shows texts and small pictures, not maps or widgets


def cells(notebook: Path, kind: str) -> list[dict[str, Any]]:
    book = json.loads(notebook.read_text(encoding="utf-8"))
    return [cell for cell in book["cells"] if cell["cell_type"] == kind]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_committed_without_heavy_outputs(notebook: Path) -> None:
    outputs = [output for cell in cells(notebook, "code") for output in cell["outputs"]]
    pictures = [output["data"].keys() for output in outputs if output["output_type"] == "display_data"]
    assert pictures and all(kinds == {"image/jpeg"} for kinds in pictures)
    assert {output["output_type"] for output in outputs} == {"stream", "display_data"}
    assert notebook.stat().st_size < MAX_BYTES
    assert "/root" not in notebook.read_text(encoding="utf-8") and "/tmp" not in notebook.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def speaking(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    speaking_model().save_pretrained(folder, save_original_format=False)
    tiny_processor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """One for all notebooks: each takes seconds to import what they all do."""
    pytest.importorskip("ipykernel")
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    changed = {"PYTHONPATH": paths, "RSMOE_CACHE": str(tmp_path_factory.mktemp("cache"))}
    manager = pytest.importorskip("jupyter_client").AsyncKernelManager(kernel_name="python3")
    asyncio.run(manager.start_kernel(env={**os.environ, **changed}))
    yield manager
    asyncio.run(manager.shutdown_kernel(now=True))


@pytest.fixture
def execute(tmp_path: Path, kernel: Any) -> Callable[..., Any]:
    """Runs a notebook in an empty folder, with other parameters and none of another's variables, and returns it."""
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")

    def run(name: str, **parameters: Any) -> Any:
        book = nbformat.read(ROOT / "docs" / "tutorials" / f"{name}.ipynb", as_version=4)
        (cell,) = [cell for cell in book.cells if "parameters" in cell.metadata.get("tags", ())]
        known = {one.id for one in ast.walk(ast.parse(cell.source)) if isinstance(one, ast.Name)}
        assert known == parameters.keys()
        cell.source = "\n".join(f"{key} = {value!r}" for key, value in parameters.items())
        book.cells.insert(0, nbformat.v4.new_code_cell(f"%reset -f\n%cd -q {tmp_path}"))
        nbclient.NotebookClient(book, timeout=1200, km=kernel).execute()
        return book

    return run


def printed(book: Any) -> list[str]:
    """Lines on standard output."""
    outputs = [output for cell in book.cells if cell.cell_type == "code" for output in cell.outputs]
    return "".join(output["text"] for output in outputs if output.get("name") == "stdout").splitlines()


@pytest.mark.slow
def test_caption_and_ask(speaking: Path, tmp_path: Path, execute: Callable[..., Any]) -> None:
    images = [str(tmp_path / f"{seed}.png") for seed in range(3)]
    for seed, image in enumerate(images):
        Image.fromarray(np.random.default_rng(seed).integers(0, 256, (32, 32, 3), np.uint8)).save(image)
    said = printed(execute("caption", MODEL=str(speaking), IMAGES=images))
    loaded = load(str(speaking))
    captions = Predictor(loaded.model, loaded.processor).predict(images)
    assert said[0].split() == captions[0].text.split()
    for name, prompt in captions[0].router_prompts.items():
        assert f"{name}: {prompt}" in said
    assert {f"{seed}.png {one.text}" for seed, one in enumerate(captions)} <= set(said)
    assert said[-1].split() == captions[0].text.split()  # of the pipeline


@pytest.mark.slow
def test_train_on_your_own_images(speaking: Path, tmp_path: Path, execute: Callable[..., Any]) -> None:
    for module in ("trl", "pycocoevalcap"):
        pytest.importorskip(module)
    data, output = tmp_path / "chips", tmp_path / "my-nano"
    said = printed(execute("train", MODEL=str(speaking), DATA=str(data), OUTPUT=str(output), COUNT=10))
    assert len(list(data.glob("*.png"))) == 10 and len((data / "metadata.jsonl").read_text().splitlines()) == 10
    assert "8 images to learn from, 2 to score" in said and "experts: theme, object, relation" in said
    assert {"README.md", "model.safetensors", "report.json", "stage1.png", "stage2.png"} <= set(said)
    (result,) = json.loads((output / "report.json").read_text())["results"]
    assert result["items"] == 2
    told = [line for line in said if " to " in line and line.endswith(")")]
    assert [line.split(":")[0] for line in told] == ["my-nano", *result["baselines"]]
    assert told[0].startswith(f"my-nano: {result['scores']['CIDEr-D']['value']:.1f} (")
    checkpoint = load(str(output))
    after = Predictor(checkpoint.model, checkpoint.processor).predict([data / "00.png"])[0]
    assert list(after.expert_texts) == ["theme", "object", "relation"]
    before, after = (load_file(folder / "model.safetensors") for folder in (speaking, output))
    changed = {name.split(".")[1] for name in after if not torch.equal(before[name], after[name])}
    assert {"encoder", "language_model", "router", "experts"} == changed


@pytest.mark.slow
def test_add_an_expert(speaking: Path, tmp_path: Path, execute: Callable[..., Any]) -> None:
    pytest.importorskip("trl")
    output = tmp_path / "counting"
    said = printed(execute("add_expert", MODEL=str(speaking), OUTPUT=str(output), COUNT=4, EPOCHS=3))
    assert "['theme', 'object', 'relation', 'counting']" in said
    assert any(line.endswith("{'model.experts.counting'}") for line in said)
    assert load(str(output / "trained")).processor.experts[-1] == "counting"
    counts = [line.split(": ") for line in said if line.endswith(" of 10")]
    assert [name for name, _ in counts] == ["theme", "object", "relation", "counting"]
    assert "counting: How many storage tanks are there?" in said
    before, after = (load_file(output / name / "model.safetensors") for name in ("start", "trained"))
    assert before.keys() == after.keys()
    assert {name.split(".")[2] for name in after if not torch.equal(before[name], after[name])} == {"counting"}


@pytest.mark.slow
def test_the_scene_on_a_map(speaking: Path, tmp_path: Path, execute: Callable[..., Any]) -> None:
    pytest.importorskip("ipyleaflet")
    scene = write_raster(tmp_path / "scene.tif", noise(3, 40, 60, "uint8", 255), photometric="rgb", **UTM)
    book = execute("scene", MODEL=str(speaking), SCENE=str(scene), TILE=20)
    *_, captions, answers = [cell for cell in book.cells if cell.cell_type == "code"]
    for cell in (captions, answers):
        (output,) = cell.outputs
        assert "application/vnd.jupyter.widget-view+json" in output["data"]
    states = [widget["state"] for widget in book.metadata["widgets"][WIDGETS]["state"].values()]
    layers = [state["data"]["features"] for state in states if state["_model_name"] == "LeafletGeoJSONModel"]
    assert [len(features) for features in layers] == [6, 6]
    assert all(feature["properties"]["style"]["fillColor"] for features in layers for feature in features)
