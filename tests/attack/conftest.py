"""A tiny checkpoint to damage, an image, a data folder, and an alarm: what hangs is a failure."""

import json
import os
import shutil
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from modeling_rsmoe.cli import app


MAX_SECONDS = 60  # of processor time for one attack; a long one sets the timer anew
PATIENCE = 1200  # seconds by the clock

Make = Callable[[Path], Any]
# What is no regular file, by name: a function that puts it at a path.
NO_FILES: dict[str, Make] = {
    "FIFO": os.mkfifo,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "socket": lambda path: socket.socket(socket.AF_UNIX).bind(str(path)),
    "folder": Path.mkdir,
}


@pytest.fixture(autouse=True)
def alarm() -> Iterator[None]:
    """Processor time is what an attack may cost, however busy the machine is. The clock is for what waits for ever."""

    def ring(number: int, frame: object) -> None:
        pytest.fail(f"it hangs: more than {MAX_SECONDS} s of processor time, or not done after {PATIENCE} s")

    before = {number: signal.signal(number, ring) for number in (signal.SIGPROF, signal.SIGALRM)}
    signal.setitimer(signal.ITIMER_PROF, MAX_SECONDS)
    signal.alarm(PATIENCE)
    yield
    signal.setitimer(signal.ITIMER_PROF, 0)
    signal.alarm(0)
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def damaged(checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of the checkpoint, to damage."""
    return Path(shutil.copytree(checkpoint, tmp_path / "damaged"))


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("image") / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)).save(path)
    return path


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory, image: Path) -> Path:
    """A data folder of some images, with captions of two splits."""
    folder, rows = tmp_path_factory.mktemp("data"), []
    for number, split in enumerate(("train", "train", "train", "train", "test", "test")):
        pixels = np.random.default_rng(number).integers(0, 256, (32, 32, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        captions = [f"{number + 2} planes are near the terminal .", "there is a runway ."]
        rows.append({"image": f"{number}.png", "dataset": "Tiny", "split": split, "captions": captions})
    (folder / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def refusal(*command: Any) -> str:
    """The one line by which the real command line refuses a command, with exit code 2 and nothing on stdout."""
    result = CliRunner().invoke(app, [str(word) for word in command], catch_exceptions=False, prog_name="rsmoe")
    lines = [line for line in result.stderr.splitlines() if not line.endswith(" ...")]
    assert result.exit_code == 2 and result.stdout == "", (result.exit_code, result.output)
    assert len(lines) == 1 and lines[0].startswith("rsmoe: error: "), lines
    return lines[0].removeprefix("rsmoe: error: ")
