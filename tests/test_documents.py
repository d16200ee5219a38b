"""What README.md and model_card.md say is so: their code runs, their files exist, their numbers are right."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from modeling_rsmoe import RSMoEConfig, RSMoEForConditionalGeneration
from modeling_rsmoe.bench.results import read_results
from modeling_rsmoe.bench.tables import markdown
from modeling_rsmoe.cli import app
from modeling_rsmoe.evaluation.report import read_report
from modeling_rsmoe.hub.facts import read_facts


ROOT = Path(__file__).resolve().parents[1]
NANO = ROOT / "hub_configs" / "rs-moe-nano"
SCORES = ROOT / "docs" / "scores"


@pytest.fixture(scope="module")
def folder(shared_checkpoint, tmp_path_factory) -> Path:
    """A folder as the examples find it: the checkpoint `nano` and `tile.png`."""
    folder = tmp_path_factory.mktemp("user")
    shutil.copytree(shared_checkpoint(reranker_rank=4, reranker_buckets=32), folder / "nano")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(folder / "tile.png")
    return folder


def python_of(document: str) -> list[str]:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / document).read_text(), flags=re.S)
    assert blocks
    return blocks


def test_python_of_the_readme_runs(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    for block in python_of("README.md"):
        exec(compile(block, "README.md", "exec"), {})
    assert capsys.readouterr().out.strip()


@pytest.mark.slow
def test_python_of_the_card_runs(folder):
    """As a newcomer runs it: ten lines at most, in a process of its own, with the code of the checkpoint."""
    (block,) = python_of("model_card.md")
    assert len([line for line in block.splitlines() if line]) <= 10
    told = run_in_a_fresh_process(block, folder)
    assert "theme" in told[-1] and "theme" in told[-2] and told[0]


def run_in_a_fresh_process(code: str, folder: Path) -> list[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_HOME": str(folder / "home"), "HF_HUB_OFFLINE": "1"}
    (folder / "use.py").write_text(code)
    done = subprocess.run(
        [sys.executable, "use.py"], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()


def test_readme_names_every_file_of_the_package():
    readme = (ROOT / "README.md").read_text()
    tracked = [
        *(ROOT / "modeling_rsmoe").glob("*_rsmoe.py"),
        *(ROOT / "examples").glob("*.py"),
        *(ROOT / "docs").rglob("*.md"),
    ]
    assert [path.name for path in tracked if path.name not in readme] == []
    linked = re.findall(r"\]\((?!http)([^)#]+)\)", readme + (ROOT / "model_card.md").read_text())
    assert [link for link in linked if not (ROOT / link).exists()] == []


def test_readme_names_the_commands_of_the_makefile():
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), flags=re.M)
    used = set(re.findall(r"make (\w+)", (ROOT / "README.md").read_text()))
    assert {"demo", "test", "check"} <= used <= set(targets)


@pytest.mark.slow
def test_nano_builds_and_has_the_parameters_of_its_card():
    config = RSMoEConfig.from_pretrained(NANO)
    with torch.device("meta"):
        model = RSMoEForConditionalGeneration(config).model
    parts = {
        "image encoder": model.encoder.vision_model,
        "Q-Former": model.encoder.qformer,
        "base LM": model.language_model,
        "router": model.router,
    }
    card = (ROOT / "model_card.md").read_text()
    for name, part in parts.items():
        millions = sum(parameter.numel() for parameter in part.parameters()) / 1e6
        assert re.search(rf"\| {name}.*\| {millions:.1f} M", card), f"{name}: {millions:.1f} M"


def card(name: str, folder: Path, *arguments: object) -> Path:
    """What `rsmoe card NAME` writes, in a folder of the test's."""
    folder.mkdir(exist_ok=True)
    words = [name, "--output", folder / "card.md", "--stac", folder / "stac_item.json", *arguments]
    result = CliRunner().invoke(app, ["card", *map(str, words)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return folder


def test_nanos_card_is_what_the_command_writes(tmp_path):
    """`rsmoe card rs-moe-nano --scores docs/scores --table docs/how-to/evaluation.md`: nothing by hand."""
    tables = Path(shutil.copy(ROOT / "docs" / "how-to" / "evaluation.md", tmp_path))
    made = card("rs-moe-nano", tmp_path / "made", "--scores", SCORES, "--table", tables)
    again = "write it again: rsmoe card rs-moe-nano --scores docs/scores --table docs/how-to/evaluation.md"
    assert (NANO / "README.md").read_text() == (made / "card.md").read_text(), again
    assert (NANO / "stac_item.json").read_text() == (made / "stac_item.json").read_text(), again
    assert (ROOT / "docs" / "how-to" / "evaluation.md").read_text() == tables.read_text(), again
    root = "rsmoe card rs-moe-nano --scores docs/scores --output model_card.md"
    assert (ROOT / "model_card.md").read_text() == (made / "card.md").read_text(), root
    assert {read_report(file)["task"] for file in SCORES.glob("*.json")} == {"captioning", "vqa"}


@pytest.mark.parametrize("name", ["rs-moe-1b", "rs-moe-3b", "rs-moe-7b"])
def test_cards_of_the_larger_sizes_are_what_the_command_writes(name, tmp_path):
    made = card(name, tmp_path)
    assert (NANO.parent / name / "README.md").read_text() == (made / "card.md").read_text(), f"rsmoe card {name}"
    assert not (made / "stac_item.json").exists()


def test_what_the_card_says_of_scores_is_so():
    """Sentences of card.yaml, held against the differences of the reports; other weights may need other sentences."""
    limits = " ".join(read_facts("rs-moe-nano").texts.limits)

    def difference(report: str, other: str, score: str) -> dict[str, dict[str, float]]:
        found = {against["name"]: against["differences"] for against in read_report(SCORES / report)["against"]}
        return {one["dataset"]: one["scores"][score] for one in found[other]}

    assert "Its captions are better than those of its base LM alone **because a reranker chooses**" in limits
    found = difference("captioning-val-full.json", "captioning-val-base", "CIDEr-D")
    assert min(found[dataset]["low"] for dataset in ("RSICD", "UCM-Captions", "all")) > 0
    assert "Of RSVQA-LR's questions it answers fewer than a guess from their words" in limits
    assert difference("vqa-val-full.json", "vqa-val-question-only", "accuracy")["RSVQA-LR"]["high"] < 0


def test_trained_weights_are_small_enough():
    assert 1e6 < (NANO / "trained.safetensors").stat().st_size < 60e6


def test_tables_of_speed_are_what_the_command_writes():
    """`rsmoe bench --from docs/bench.json --markdown`."""
    results = read_results(ROOT / "docs" / "bench.json")
    assert markdown(results).strip() in (ROOT / "docs" / "benchmarks" / "performance.md").read_text()
