"""The same collection by two workers of a Ray cluster, one of which is killed."""

import contextlib
import os
import pickle
import signal
import tempfile
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from modeling_rsmoe.collection import engines
from modeling_rsmoe.collection.describers import Captioner, CheckpointSource
from modeling_rsmoe.collection.engines import LocalEngine, RayEngine
from modeling_rsmoe.collection.images import CollectionImage, find_images
from modeling_rsmoe.collection.pipeline import describe_collection
from modeling_rsmoe.collection.worker import Shard
from modeling_rsmoe.errors_rsmoe import RSMoEError
from modeling_rsmoe.inference import GenerationSettings


pytestmark = [pytest.mark.ray, pytest.mark.skipif(not os.path.isdir("/proc"), reason="finds the workers in /proc")]


def descendants() -> dict[int, str]:
    """Processes that this one has started, and theirs: what they call themselves, by their ids."""
    parents, names = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
            names[int(folder.name)] = (folder / "cmdline").read_bytes().decode(errors="replace")
        except (OSError, ValueError):
            continue
    found: set[int] = {os.getpid()}
    while more := {process for process, parent in parents.items() if parent in found} - found:
        found |= more
    return {process: names.get(process, "") for process in found - {os.getpid()}}


def test_a_killed_worker_loses_and_doubles_nothing(
    captioner: Captioner, tiles: Path, tmp_path: Path, monkeypatch, capfd
) -> None:
    """Also where temporary files have names too long for sockets, and nothing is left of the cluster."""
    temporary = tmp_path / ("long" * 20)
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    images = find_images([str(tiles)])
    before = set(descendants())
    killed: list[int] = []

    def kill_one(message: str, done: float, total: float, unit: str) -> None:
        """A worker in the middle of a shard."""
        until = time.monotonic() + 30
        while done and not killed and time.monotonic() < until:
            for notes in (tmp_path / "ray.parquet.shards").glob("*.notes"):
                with contextlib.suppress(OSError, ValueError):
                    process = int(notes.read_text().splitlines()[0].split()[-1])
                    os.kill(process, signal.SIGSTOP)
                    killed.extend([process] if notes.exists() and process in descendants() else [])
                    os.kill(process, signal.SIGKILL if killed else signal.SIGCONT)
                    break
            time.sleep(0.005)

    made = describe_collection(captioner, images, tmp_path / "ray.parquet", RayEngine(workers=2), 1, kill_one)
    assert killed and made.num_repeated == 1 and (made.num_rows, made.num_errors, made.num_described) == (11, 1, 11)
    said = capfd.readouterr()
    assert said.out == "" and said.err == "", said
    assert set(descendants()) <= before and not list(temporary.iterdir())
    captioner.__dict__["_loaded"] = None
    describe_collection(captioner, images, tmp_path / "local.parquet", LocalEngine(), 4)
    ours, theirs = (pq.read_table(tmp_path / name) for name in ("ray.parquet", "local.parquet"))
    assert ours.equals(theirs) and ours.schema.metadata == theirs.schema.metadata
    assert sorted(path.name for path in tmp_path.glob("*.parquet*")) == ["local.parquet", "ray.parquet"]


def test_what_workers_cannot_mend_ends_the_run(captioner: Captioner, tiles: Path, tmp_path: Path, monkeypatch) -> None:
    """Without a cluster: what a worker says of its checkpoint, its disk and an address that is none."""
    here = captioner.checkpoint
    other = Captioner(
        CheckpointSource(here.name, "abc", "0" * 64, here.find, here.load), "Describe the image.", GenerationSettings()
    )
    batch = {"shard": [pickle.dumps(Shard("shard-000-0000000.parquet", [CollectionImage("a.png", "a.png")]))]}
    said = engines._Worker(other, str(tmp_path), 1)(batch)
    assert "is not the one that the run was started with" in said["problem"][0] and said["num_rows"] == [0]
    said = engines._Worker(captioner, str(tmp_path / "lost"), 1)(batch)
    assert "a worker cannot write" in said["problem"][0] and "No such file" in said["problem"][0]
    with pytest.raises(
        RSMoEError, match="the Ray cluster 127.0.0.1:1 cannot be reached .*refused.*see docs/how-to/scale.md"
    ):
        describe_collection(
            captioner, find_images([str(tiles)]), tmp_path / "x.parquet", RayEngine(address="127.0.0.1:1"), 1
        )
