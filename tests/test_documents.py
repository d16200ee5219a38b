"""What README.md and model_card.md say is so: their code runs, their files exist, their numbers are the configuration's."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from modeling_rsmoe import RSMoEConfig, RSMoEForConditionalGeneration
from modeling_rsmoe.cli import app
from modeling_rsmoe.evaluation.report import read_report

from .tiny import tiny_checkpoint


ROOT = Path(__file__).resolve().parents[1]
NANO = ROOT / "hub_configs" / "rs-moe-nano"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder as the examples find it: the checkpoint `nano` and `tile.png`."""
    folder = tmp_path_factory.mktemp("user")
    tiny_checkpoint(folder / "nano")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(folder / "tile.png")
    return folder


@pytest.mark.parametrize("document", ["README.md", "model_card.md"])
def test_python_of_the_documents_runs(document, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / document).read_text(), flags=re.S)
    assert blocks
    for block in blocks:
        exec(compile(block, document, "exec"), {})
    assert capsys.readouterr().out.strip()


def test_readme_names_every_file_of_the_package():
    readme = (ROOT / "README.md").read_text()
    tracked = [
        *(ROOT / "modeling_rsmoe").glob("*_rsmoe.py"),
        *(ROOT / "examples").glob("*.py"),
        *(ROOT / "docs").glob("*.md"),
    ]
    assert [path.name for path in tracked if path.name not in readme] == []
    linked = re.findall(r"\]\((?!http)([^)#]+)\)", readme + (ROOT / "model_card.md").read_text())
    assert [link for link in linked if not (ROOT / link).exists()] == []


def test_readme_names_the_commands_of_the_makefile():
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), flags=re.M)
    used = set(re.findall(r"make (\w+)", (ROOT / "README.md").read_text()))
    assert {"demo", "test", "check"} <= used <= set(targets)


def test_nano_builds_and_has_the_parameters_of_its_card():
    config = RSMoEConfig.from_pretrained(NANO)
    with torch.device("meta"):
        model = RSMoEForConditionalGeneration(config).model
    parts = {
        "image encoder": model.encoder.vision_model,
        "Q-Former": model.encoder.qformer,
        "LLM block": model.language_model,
        "router": model.router,
    }
    card = (ROOT / "model_card.md").read_text()
    for name, part in parts.items():
        millions = sum(parameter.numel() for parameter in part.parameters()) / 1e6
        assert re.search(rf"\| {name}.*\| {millions:.1f} M", card), f"{name}: {millions:.1f} M"


def test_scores_in_the_documents_are_those_of_the_reports(tmp_path):
    """As `rsmoe card model_card.md --scores docs/scores --table docs/evaluation.md` writes them: nothing by hand."""
    copies = [tmp_path / "model_card.md", tmp_path / "evaluation.md"]
    shutil.copy(ROOT / "model_card.md", copies[0])
    shutil.copy(ROOT / "docs" / "evaluation.md", copies[1])
    result = CliRunner().invoke(
        app, ["card", str(copies[0]), "--scores", str(ROOT / "docs" / "scores"), "--table", str(copies[1])]
    )
    assert result.exit_code == 0, result.output
    assert result.output.splitlines()[:2] == [f"{copy}: unchanged" for copy in copies]
    reports = [read_report(file) for file in (ROOT / "docs" / "scores").glob("*.json")]
    assert {report["task"] for report in reports} == {"captioning", "vqa"}


def test_trained_weights_are_small_enough():
    assert 1e6 < (NANO / "trained.safetensors").stat().st_size < 60e6
