"""The tiny model of all tests. Its checkpoints are made once a run for all workers, and must stay whole."""

import gc
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from filelock import FileLock

from modeling_rsmoe.utils.files import sha256_of


# Imported where they are used: pytest-xdist's own process, which runs no test, need not wait for torch.
if TYPE_CHECKING:
    from modeling_rsmoe import RSMoEForConditionalGeneration, RSMoEProcessor


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """What was imported stays: the garbage collector need not look through millions of objects again and again."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


LONG = ("slow", "ray", "browser", "network", "wheels")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with long tests come first: at the end of a run, one worker would do the last of them alone."""
    long = {item.path for item in items if any(map(item.get_closest_marker, LONG))}
    items.sort(key=lambda item: item.path not in long)


@pytest.fixture(autouse=True)
def same_draws() -> None:
    """What a test draws without a seed of its own does not depend on the tests that ran before it."""
    if torch := sys.modules.get("torch"):
        torch.manual_seed(0)


@pytest.fixture(scope="module")
def model() -> "RSMoEForConditionalGeneration":
    from .tiny import tiny_model

    return tiny_model()


@pytest.fixture(scope="module")
def processor() -> "RSMoEProcessor":
    from .tiny import tiny_processor

    return tiny_processor()


def hashes(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): sha256_of(path) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def shared_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Path]]:
    """Like `tiny_checkpoint`, but the folder is made once for all tests. A test that writes into it takes a copy."""
    from .tiny import tiny_checkpoint

    base = tmp_path_factory.getbasetemp()
    root = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "checkpoints"
    asked: dict[Path, dict[str, str]] = {}

    def shared(**changes: Any) -> Path:
        name = hashlib.sha256(json.dumps(changes, sort_keys=True).encode()).hexdigest()[:12]
        folder = root / name / "tiny"
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.parent / "lock"):
            if not folder.exists():
                tiny_checkpoint(folder.with_name("part"), **changes).rename(folder)
            asked.setdefault(folder, hashes(folder))
        return folder

    yield shared
    for folder, whole in asked.items():
        assert hashes(folder) == whole, "a test of this module writes into a shared checkpoint: let it take a copy"


@pytest.fixture(scope="module")
def checkpoint(shared_checkpoint: Callable[..., Path]) -> Path:
    """The folder of the tiny model and its processor."""
    return shared_checkpoint()


@pytest.fixture
def without_java(monkeypatch: pytest.MonkeyPatch) -> None:
    """METEOR and the Java tokenizer take seconds, and are tested with the metrics."""
    monkeypatch.setattr("modeling_rsmoe.evaluation.captions.shutil.which", lambda name: None)
