"""Ctrl-C, once and twice: one line, exit code 130, no traceback. In processes of their own, as from a terminal."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest


# A command in which something runs until Ctrl-C, and whose cleaning up takes as long as told.
STAND_IN = """
import signal, sys, time
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
from modeling_rsmoe.cli import caption, main
from modeling_rsmoe.cli.terminal import Steps

def wait(*arguments, **options):
    Path(sys.argv[-1]).write_text("running")
    try:
        time.sleep(600)
    finally:
        Path(sys.argv[-1]).write_text("cleaning")
        time.sleep(float(seconds))

seconds = sys.argv.pop(1)
caption.Inputs = wait
main()
"""


@pytest.mark.parametrize("times, seconds", [(1, 0), (2, 600), (3, 600)], ids=["once", "twice", "at the end"])
def test_one_line(times: int, seconds: int, tmp_path: Path) -> None:
    note = tmp_path / "note"
    command = [sys.executable, "-c", STAND_IN, str(seconds), "caption", str(note)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        for stage in ("running", "cleaning")[:times]:
            while not (note.exists() and note.read_text() == stage):
                assert process.poll() is None, process.stderr.read()
            for _ in range(max(1, times - 1) if stage == "cleaning" else 1):
                os.kill(process.pid, signal.SIGINT)
        told, errors = process.communicate(timeout=60)
    assert (process.returncode, told, errors) == (130, "", "rsmoe: interrupted\n")
