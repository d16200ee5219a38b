"""Scenes through accidents: killed in the middle, a full disk, a damaged tile of one scene among several."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest


pytest.importorskip("rasterio", reason='no rasterio here: pip install "rsmoe[geo]"')
from typer.testing import CliRunner

from modeling_rsmoe.cli import app
from modeling_rsmoe.scenes.describe import log_path

from ..scenes.rasters import UTM, noise, write_raster
from .conftest import refusal


TILED = {"tiled": True, "blockxsize": 32, "blockysize": 32, "compress": "deflate"}
FORMATS = (".geojson", ".gpkg", ".parquet", ".jsonl")


def scene_file(folder: Path, name: str = "a.tif") -> Path:
    return write_raster(folder / name, noise(3, 64, 128, "uint8", 255), **UTM, **TILED)


def command(scene: Path, output: Path, checkpoint: Path) -> list[str]:
    options = ["--tile", "32", "--batch-size", "1", "--router", "none", "--fusion", "concat", "--max-new-tokens", "4"]
    return ["caption", str(scene), "--output", str(output), "--model", str(checkpoint), *options]


def run(*words: Any) -> Any:
    return CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False, prog_name="rsmoe")


def damage(path: Path) -> None:
    """A tile's bytes are no longer what they were: its file opens, and that tile cannot be read."""
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 300] = b"\xff" * 300
    path.write_bytes(content)


def test_a_damaged_scene_of_several_costs_itself(tmp_path: Path, checkpoint: Path) -> None:
    whole, bad, output = scene_file(tmp_path), scene_file(tmp_path, "bad.tif"), tmp_path / "out.geojson"
    damage(bad)
    rest = command(whole, output, checkpoint)
    result = run(rest[0], bad, *rest[1:])
    assert result.exit_code == 1, result.output
    errors = [line for line in result.stderr.splitlines() if line.startswith("rsmoe: error: ")]
    assert len(errors) == 1 and f"{bad} cannot be read" in errors[0]
    assert {one["properties"]["scene"] for one in json.loads(output.read_text())["features"]} == {str(whole)}
    assert log_path(output).exists()
    scene_file(tmp_path, "bad.tif")
    result = run(rest[0], bad, *rest[1:], "--overwrite")
    assert result.exit_code == 0, result.output
    assert len(json.loads(output.read_text())["features"]) == 16 and not log_path(output).exists()


def test_alone_it_is_an_error(tmp_path: Path, checkpoint: Path) -> None:
    damage(scene_file(tmp_path))
    output = tmp_path / "out.geojson"
    assert "cannot be read" in refusal(*command(tmp_path / "a.tif", output, checkpoint))
    assert not output.exists()


@pytest.mark.attack
@pytest.mark.parametrize("after", [1, 3, 6])
def test_killed_and_continued(after: int, tmp_path: Path, checkpoint: Path) -> None:
    """`kill -9` after some tiles: the same command goes on, to the very same file."""
    scene, output, expected = scene_file(tmp_path), tmp_path / "out.jsonl", tmp_path / "expected.jsonl"
    assert run(*command(scene, expected, checkpoint)).exit_code == 0
    words = [sys.executable, "-m", "modeling_rsmoe.cli", *command(scene, output, checkpoint)]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    log = log_path(output)
    while process.poll() is None and not (log.exists() and log.read_bytes().count(b"\n") > after):
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    if not output.exists():
        with log.open("ab") as file:
            file.write(b'{"scene": 0, "ti')  # as if killed while it wrote
    assert run(*command(scene, output, checkpoint), *(["--overwrite"] if output.exists() else [])).exit_code == 0
    assert output.read_text() == expected.read_text() and not log.exists()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.tif", "expected.jsonl", "out.jsonl"]


@pytest.mark.attack
@pytest.mark.parametrize("ending", FORMATS)
@pytest.mark.parametrize("room", [300, 3_000])  # bytes: while tiles are logged, while the output is written
def test_a_full_disk(ending: str, room: int, tmp_path: Path, checkpoint: Path) -> None:
    """As far as a limit on the size of files can stand for one."""
    scene, output = scene_file(tmp_path), tmp_path / f"out{ending}"

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))

    words = [sys.executable, "-m", "modeling_rsmoe.cli", *command(scene, output, checkpoint)]
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    done = subprocess.run(words, capture_output=True, text=True, preexec_fn=limit, env=environment)
    errors = [line for line in done.stderr.splitlines() if line.startswith("rsmoe: error: ")]
    assert done.returncode == 2 and len(errors) == 1 and "Traceback" not in done.stderr, done.stderr
    assert "free some space" in errors[0]
    assert not output.exists() and not list(tmp_path.glob(".out*"))
    assert run(*command(scene, output, checkpoint)).exit_code == 0
    assert output.exists() and not log_path(output).exists()
