"""Where downloads and features are kept, and who writes a file."""

import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest

from modeling_rsmoe import RSMoEError
from modeling_rsmoe.utils import files


def test_the_cache_folder_can_be_chosen(monkeypatch, tmp_path):
    assert files.cache_folder(tmp_path) == tmp_path
    monkeypatch.setenv("RSMOE_CACHE", str(tmp_path / "elsewhere"))
    assert files.cache_folder() == tmp_path / "elsewhere"
    monkeypatch.delenv("RSMOE_CACHE")
    assert files.cache_folder() == Path.home() / ".cache" / "rsmoe"


HOLD = """
import sys, time
from modeling_rsmoe.utils.files import only_writer
with only_writer(sys.argv[1]):
    print("held", flush=True)
    time.sleep(600)
"""


def test_one_writer_at_a_time(tmp_path):
    """The second is told who holds it; one that was killed holds nothing."""
    output = tmp_path / "new" / "out.jsonl"
    with subprocess.Popen([sys.executable, "-c", HOLD, output], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        holder = rf"process {other.pid} on {re.escape(platform.node())} since 20\d\d-"
        with pytest.raises(RSMoEError, match=f"out.jsonl is being written by {holder}.*: wait"):
            with files.only_writer(output):
                pass
        with files.only_writer(tmp_path / "new" / "other.jsonl"):
            pass
        other.kill()
        other.wait()
    assert [path.name for path in output.parent.iterdir()] == [".out.jsonl.writer"]
    with files.only_writer(output):
        with pytest.raises(RSMoEError, match=f"process {os.getpid()} on"), files.only_writer(output):
            pass
    assert not list(output.parent.iterdir())


def test_a_note_of_another_machine_holds_nothing(tmp_path):
    """What a machine left on a shared disk: the note alone is no lock."""
    (tmp_path / ".out.writer").write_text("process 1 on elsewhere since 2020-01-01")
    with files.only_writer(tmp_path / "out"):
        assert (tmp_path / ".out.writer").read_text().startswith(f"process {os.getpid()} on")


def test_no_place_to_write(tmp_path):
    (tmp_path / "a").write_text("a file")
    output = tmp_path / "a" / "out"
    with pytest.raises(RSMoEError, match="cannot write .*Give out another place"), files.only_writer(output):
        pass
