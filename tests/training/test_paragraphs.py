"""RSICap in its published form: both stages learn from it, without an option that a user must guess."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from modeling_rsmoe import RSMoEProcessor
from modeling_rsmoe.cli import app
from modeling_rsmoe.evaluation.report import read_report

from ..data.published import image, rsieval, write_json


TEXTS = [
    "This is a high-resolution aerial image of a port. There are {} ships on the water.The ships lie beside a pier.",
    "A residential area is seen. There are {} houses with gray roofs. A road passes between the houses.",
]


def paragraphs(folder: Path) -> None:
    """RSICap as published, of eight images."""
    rows = []
    for number in range(8):
        name = image(folder / f"images/P{number}.png", 32).name
        row = {"image_id": str(number), "filename": name, "text_input": "Describe this image in detail."}
        rows.append({**row, "text_output": TEXTS[number % 2].format(number + 2)})
    write_json(folder / "captions.json", {"annotations": rows})


def run(*words) -> str:
    result = CliRunner().invoke(app, [*map(str, words)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.slow
def test_from_rsicap_to_rsieval(start, settings_file, tmp_path):
    paragraphs(tmp_path / "rsicap")
    rsieval(tmp_path / "rsieval")
    data = tmp_path / "data"
    for name in ("rsicap", "rsieval"):
        run("data", "convert", name, tmp_path / name, data)
    (data / "vqa.jsonl").unlink()  # RSICap alone has no questions
    options = ["--config", settings_file]
    options += ["--features", tmp_path / "features", "--bf16", "false", "--data", data]
    run("train", "stage1", *options, "--model", start, "--output", tmp_path / "stage1")
    run("train", "stage2", *options, "--model", tmp_path / "stage1", "--output", tmp_path / "stage2")
    log = json.loads((tmp_path / "stage2/trainer_state.json").read_text())["log_history"]
    experts = RSMoEProcessor.from_pretrained(tmp_path / "stage2").experts
    assert {f"loss_{name}" for name in ("router", *experts)} <= {name for entry in log for name in entry}
    report = tmp_path / "report.json"
    run("evaluate", tmp_path / "stage2", "--data", data, "--dataset", "RSIEval", "--split", "test", "--output", report)
    assert read_report(report)["task"] == "captioning"
