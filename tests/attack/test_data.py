"""Rows and settings made to end a command late, with a traceback or never: each costs one line, before any work."""

import json
from pathlib import Path

import pytest

from .conftest import refusal


def row(**changes: object) -> str:
    return json.dumps({"image": "a.png", "dataset": "Tiny", "split": "test", "captions": ["a plane ."], **changes})


ROWS = {
    "nested": ('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}", "nested too deep"),
    "a name that is too long": (row(image="a" * 300 + ".png"), "is missing"),
    "half a letter in a caption": (row(captions=["a \ud800 plane ."]), "surrogates not allowed"),
    "half a letter in a name": (row(dataset="\ud800"), "surrogates not allowed"),
}


@pytest.mark.parametrize("name", ROWS)
def test_rows(name: str, tmp_path: Path, checkpoint: Path, image: Path) -> None:
    line, reason = ROWS[name]
    (tmp_path / "a.png").write_bytes(image.read_bytes())
    (tmp_path / "captions.jsonl").write_text(line + "\n")
    message = refusal("evaluate", checkpoint, "--data", tmp_path, "--output", tmp_path / "report.json")
    assert "captions.jsonl:1" in message and reason in message


@pytest.mark.parametrize("name", ["nested", "half a letter in a caption"])
def test_rows_of_predictions(name: str, tmp_path: Path, checkpoint: Path, data: Path) -> None:
    (tmp_path / "a.jsonl").write_text(ROWS[name][0] + "\n")
    options = ("--output", tmp_path / "report.json", "--predictions", tmp_path / "a.jsonl")
    assert "a.jsonl:1" in refusal("evaluate", checkpoint, "--data", data, *options)


BILLION = "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}' if n else 'a'] * 10)}]\n" for n in range(10))


@pytest.mark.parametrize(
    ("settings", "reason"),
    [(BILLION + "stage1: {lora_r: *a9}\n", "more than 16 aliases"), ("stage1: " + "[" * 5000, "nested too deep")],
)
def test_settings(settings: str, reason: str, tmp_path: Path, checkpoint: Path, data: Path) -> None:
    (tmp_path / "a.yaml").write_text(settings)
    options = ("--config", tmp_path / "a.yaml", "--data", data, "--output", tmp_path / "run")
    assert reason in refusal("train", "stage1", *options, "--model", checkpoint)


@pytest.mark.parametrize(
    "command", [("caption", "a" * 300 + ".json"), ("evaluate", "--data", "a" * 300, "--output", "report.json")]
)
def test_names_that_are_too_long(command: tuple[str, ...], checkpoint: Path) -> None:
    model = (checkpoint,) if command[0] == "evaluate" else ("--model", checkpoint)
    assert "File name too long" in refusal(*command, *model)
