"""The Hugging Face Space of examples/space: its settings are true, and its app is built as it stands, at tiny size."""

import importlib.util
import re
import tomllib
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image


ROOT = Path(__file__).resolve().parents[1]
SPACE = ROOT / "examples" / "space"


def test_settings_are_those_of_the_package() -> None:
    settings = yaml.safe_load((SPACE / "README.md").read_text(encoding="utf-8").split("---")[1])
    assert settings["sdk"] == "gradio" and (SPACE / settings["app_file"]).is_file()
    assert f"gradio=={settings['sdk_version']}" in (ROOT / "constraints-cpu.txt").read_text().splitlines()
    assert len(settings["short_description"]) <= 60  # the Hub's limit
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert settings["license"] == project["license"].lower()
    found = re.fullmatch(r"rsmoe\[(.*)\]\n", (SPACE / "requirements.txt").read_text())
    assert found and set(found[1].split(",")) <= set(project["optional-dependencies"])


@pytest.mark.slow
def test_the_app_is_built(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gradio = pytest.importorskip("gradio", reason='no gradio here: pip install "rsmoe[demo]"')
    tile = tmp_path / "tile.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)).save(tile)
    monkeypatch.setenv("RSMOE_MODEL", str(checkpoint))
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    monkeypatch.setattr("modeling_rsmoe.hub.download.demo_images", lambda progress: [tile])
    spec = importlib.util.spec_from_file_location("space_app", SPACE / "app.py")
    assert spec and spec.loader
    app = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(app)
    page = app.build()
    assert isinstance(page, gradio.Blocks) and not page.analytics_enabled
    parts = {part.get("label"): part for component in page.config["components"] if (part := component["props"])}
    assert {"Image or GeoTIFF", "Examples", "Question about this image", "Each expert is asked by"} <= parts.keys()
    assert [example["caption"] for example in parts["Examples"]["value"]] == ["tile.png"]
