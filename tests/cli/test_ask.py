"""`rsmoe ask` with several questions, and with questions that are typed or read from standard input."""

import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from modeling_rsmoe.cli import app
from modeling_rsmoe.inference import CachingPredictor
from modeling_rsmoe.modeling_rsmoe import RSMoEForConditionalGeneration
from tests.cli.test_cli import errors, run, tiles  # noqa: F401
from tests.scenes.rasters import UTM, noise, write_raster


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images each call of the image encoder has."""
    encode, sizes = RSMoEForConditionalGeneration.encode_image, []

    def count(self: Any, pixel_values: Any, *arguments: Any) -> Any:
        sizes.append(len(pixel_values))
        return encode(self, pixel_values, *arguments)

    monkeypatch.setattr(RSMoEForConditionalGeneration, "encode_image", count)
    return sizes


def typed(questions: str, *arguments: Any) -> Result:
    words = [str(argument) for argument in arguments]
    return CliRunner().invoke(app, words, input=questions, catch_exceptions=False, prog_name="rsmoe")


def answers(output: str) -> list[tuple[str, str, str]]:
    found = map(json.loads, output.splitlines())
    return [(one["image"], one["question"], one["answer"]) for one in found]


@pytest.mark.slow
def test_several_questions_of_several_images(
    tiles: list[Path],  # noqa: F811
    checkpoint: Path,
    encoded: list[int],
) -> None:
    command = ("--model", checkpoint, "--router", "none", "--json")
    questions = ("--question", "Is it a?", "--question", " What is b? ")
    found = answers(run("ask", *tiles[:2], *questions, *command, "--batch-size", 3).stdout)
    assert [one[:2] for one in found] == [
        (str(tile), text) for tile in tiles[:2] for text in ("Is it a?", "What is b?")
    ]
    assert sum(encoded) == 2, "an image is encoded once, also in two batches"
    alone = [answers(run("ask", one, text, *command).stdout)[0] for one, text, _ in found]
    assert found == alone


def test_questions_of_standard_input(
    tiles: list[Path],  # noqa: F811
    checkpoint: Path,
    encoded: list[int],
) -> None:
    command = ("ask", tiles[0], "--model", checkpoint, "--router", "none", "--json")
    result = typed("Is it a?\n\n  What is b?\nIs it a?\n", *command)
    assert result.exit_code == 0 and encoded == [1]
    found = answers(result.stdout)
    assert [one[1] for one in found] == ["Is it a?", "What is b?", "Is it a?"] and found[0] == found[2]
    refused = typed("Is it <image>?\nIs it a?\n", *command)
    assert refused.exit_code == 1 and answers(refused.stdout) == found[:1]
    assert "rsmoe: error: " in refused.stderr and "holds <image>" in refused.stderr


def test_a_scene_is_encoded_once(tmp_path: Path, checkpoint: Path, encoded: list[int]) -> None:
    scene = write_raster(tmp_path / "scene.tif", noise(3, 40, 60), **UTM)
    command = ("--tile", 20, "--model", checkpoint, "--router", "none", "--json")
    result = typed("Is it a?\nWhat is b?\n", "ask", scene, *command)
    lines = list(map(json.loads, result.stdout.splitlines()))
    assert [line["question"] for line in lines] == ["Is it a?"] * 7 + ["What is b?"] * 7 and sum(encoded) == 6
    given = run("ask", scene, "--question", "Is it a?", "--question", "What is b?", *command)
    assert given.stdout == result.stdout and sum(encoded) == 12


def test_features_are_asked_all_questions(tiles: list[Path], checkpoint: Path, tmp_path: Path) -> None:  # noqa: F811
    file = tmp_path / "features.parquet"
    assert run("encode", tiles[0].parent, "--output", file, "--model", checkpoint).exit_code == 0
    command = ("--model", checkpoint, "--router", "none", "--json")
    found = answers(run("ask", file, "--question", "Is it a?", "--question", "b?", *command).stdout)
    assert [one[1] for one in found] == ["Is it a?", "b?"] * 3
    assert answers(typed("b?\n", "ask", file, *command).stdout) == found[1::2]
    assert "ask it by itself" in errors(run("ask", file, tiles[0], "--question", "b?", *command))[0]


def test_features_that_do_not_fit_are_encoded_again(
    tiles: list[Path],  # noqa: F811
    checkpoint: Path,
    encoded: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from modeling_rsmoe.inference import load

    loaded = load(str(checkpoint))
    predictor = CachingPredictor(loaded.model, loaded.processor)
    embeds = predictor.encode(tiles[:1])
    monkeypatch.setattr("modeling_rsmoe.inference.caching.MAX_BYTES", embeds.nbytes)
    for _ in range(2):
        again = predictor.encode([tiles[1], tiles[0], tiles[1]])
        assert again[1].equal(embeds[0]) and again[0].equal(again[2]) and not again[0].equal(again[1])
    assert encoded == [1, 1, 1]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="a terminal of Unix")
def test_a_prompt(tiles: list[Path], checkpoint: Path) -> None:  # noqa: F811
    """In a real terminal: a question, the same by the up arrow, Ctrl-D."""
    leader, follower = pty.openpty()
    command = [sys.executable, "-m", "modeling_rsmoe.cli", "ask", tiles[0], "--model", checkpoint, "--router", "none"]
    program = subprocess.Popen(
        [*map(str, command), "--json"], stdin=follower, stdout=follower, stderr=subprocess.DEVNULL
    )
    os.close(follower)
    shown = b""

    def wait_for(text: bytes) -> None:
        nonlocal shown
        while text not in shown:
            shown += os.read(leader, 4096)
        shown = shown.split(text, 1)[1]

    for keys in (b"Is it a?\n", b"\x1b[A\n"):
        wait_for(b"question> ")
        os.write(leader, keys)
        wait_for(b'{"image"')
        wait_for(b"}\r\n")
    wait_for(b"question> ")
    os.write(leader, b"\x04")
    assert program.wait(timeout=60) == 0
    os.close(leader)
