"""docs/tutorials: every notebook is small, and runs from top to bottom."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from .scenes.rasters import UTM, noise, write_raster
from .tiny import speaking_model, tiny_processor


ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "docs" / "tutorials").glob("*.ipynb"))
WIDGETS = "application/vnd.jupyter.widget-state+json"
MAX_BYTES = 40_000  # a committed notebook shows texts, not images or widgets


def cells(notebook: Path, kind: str) -> list[dict[str, Any]]:
    book = json.loads(notebook.read_text(encoding="utf-8"))
    return [cell for cell in book["cells"] if cell["cell_type"] == kind]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_committed_without_heavy_outputs(notebook: Path) -> None:
    outputs = [output for cell in cells(notebook, "code") for output in cell["outputs"]]
    assert outputs and {output["output_type"] for output in outputs} == {"stream"}
    assert notebook.stat().st_size < MAX_BYTES
    assert "/root" not in notebook.read_text(encoding="utf-8") and "/tmp" not in notebook.read_text(encoding="utf-8")


def test_the_scene_on_a_map(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("ipykernel", "ipyleaflet"):
        pytest.importorskip(module)
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    speaking_model().save_pretrained(tmp_path / "tiny", save_original_format=False)
    tiny_processor().save_pretrained(tmp_path / "tiny")
    scene = write_raster(tmp_path / "scene.tif", noise(3, 40, 60, "uint8", 255), photometric="rgb", **UTM)
    book = nbformat.read(ROOT / "docs" / "tutorials" / "scene.ipynb", as_version=4)
    (parameters,) = [cell for cell in book.cells if "parameters" in cell.metadata.get("tags", ())]
    parameters.source = f"MODEL, SCENE, TILE = {str(tmp_path / 'tiny')!r}, {str(scene)!r}, 20"
    nbclient.NotebookClient(book, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    *_, captions, answers = [cell for cell in book.cells if cell.cell_type == "code"]
    for cell in (captions, answers):
        (output,) = cell.outputs
        assert "application/vnd.jupyter.widget-view+json" in output["data"]
    states = [widget["state"] for widget in book.metadata["widgets"][WIDGETS]["state"].values()]
    layers = [state["data"]["features"] for state in states if state["_model_name"] == "LeafletGeoJSONModel"]
    assert [len(features) for features in layers] == [6, 6]
    assert all(feature["properties"]["style"]["fillColor"] for features in layers for feature in features)
