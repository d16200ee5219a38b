"""Fixtures of the hub tests: the tiny stand-ins for all sources, and the real files of rs-moe-nano."""

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from modeling_rsmoe.hub.download import wheel_files
from modeling_rsmoe.hub.sources import PRETRAINED, pinned_sources

from .tiny_sources import TinySources, make_tiny_sources


@pytest.fixture(scope="session")
def tiny_sources(tmp_path_factory) -> TinySources:
    return make_tiny_sources(tmp_path_factory.mktemp("tiny_sources"))


@pytest.fixture
def cache(tiny_sources, tmp_path) -> Path:
    """A cache that holds every tiny wheel, of one's own to damage."""
    return Path(shutil.copytree(tiny_sources.wheels, tmp_path / "cache"))


@pytest.fixture
def package_index(tiny_sources, monkeypatch) -> Path:
    """pip finds packages in a local folder only: the tiny wheels, to be downloaded without a network."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tiny_sources.wheels))
    return tiny_sources.wheels


@pytest.fixture(scope="session")
def real_files():
    """The data files of rs-moe-nano's wheels by module and name: 290 MB, moved, so that the cache is not locked."""
    sources = pinned_sources("rs-moe-nano")
    with TemporaryDirectory() as folder:
        real = {}
        for module in PRETRAINED:
            moved = Path(folder) / module
            moved.mkdir()
            with wheel_files(sources.modules[module].wheel) as files:
                real[module] = {name: Path(shutil.move(path, moved / name)) for name, path in files.items()}
        yield real
