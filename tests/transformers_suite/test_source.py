"""The fetching of transformers' common tests, and the table of skips."""

import hashlib
import io
import tarfile
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from . import skips, source


FILES = {f"tests/{name}": b"x = 1\n" for name in source.NEEDED}


def make_archive(path: Path, version: str = "9.9.9", files: dict[str, bytes] = FILES) -> Path:
    """Writes a source distribution of transformers with nothing but `files` in it."""
    with tarfile.open(path, "w:gz") as tar:
        for name, data in {"PKG-INFO": f"Metadata-Version: 2.4\nVersion: {version}\n".encode(), **files}.items():
            member = tarfile.TarInfo(f"transformers-{version}/{name}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


@pytest.fixture
def downloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replaces the download by a made archive, and lists the versions that were asked for."""
    asked: list[str] = []

    def download(version: str, folder: Path) -> Path:
        asked.append(version)
        return make_archive(folder / f"transformers-{version}.tar.gz", version)

    monkeypatch.setattr(source, "download", download)
    return asked


@pytest.mark.network
def test_common_tests_are_here():
    """Fails with the reason and the remedy where they cannot be downloaded; the other modules are then left out."""
    folder = source.fetch()
    assert source.is_whole(folder)


def test_fetch_downloads_once(tmp_path: Path, downloads: list[str]):
    folder = source.fetch("9.9.9", tmp_path)
    assert source.fetch("9.9.9", tmp_path) == folder
    assert downloads == ["9.9.9"]
    assert sorted(path.name for path in folder.parent.iterdir()) == ["9.9.9"]  # no temporary folder stays


@pytest.mark.parametrize("damage", ["changed", "removed", "no record"])
def test_fetch_repairs_a_damaged_cache(tmp_path: Path, downloads: list[str], damage: str):
    folder = source.fetch("9.9.9", tmp_path)
    if damage == "changed":
        (folder / source.NEEDED[0]).write_text("x = 2\n")
    elif damage == "removed":
        (folder / source.NEEDED[0]).unlink()
    else:
        (folder / "checksums.json").write_text("{")
    assert source.is_whole(source.fetch("9.9.9", tmp_path))
    assert (folder / source.NEEDED[0]).read_bytes() == b"x = 1\n"
    assert downloads == ["9.9.9"] * 2


def test_fetch_without_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    empty = tmp_path / "empty"
    empty.mkdir()
    for name, value in {"NO_INDEX": "1", "FIND_LINKS": str(empty), "CONFIG_FILE": "/dev/null"}.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    with pytest.raises(source.CommonTestsUnavailable, match="Connect this machine to a package index") as caught:
        source.fetch("9.9.9", tmp_path / "cache")
    assert "transformers 9.9.9" in str(caught.value)
    assert list((tmp_path / "cache").rglob("*.py")) == []


def test_download_checks_the_known_checksum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    archive = make_archive(tmp_path / "transformers-9.9.9.tar.gz")
    for name, value in {"NO_INDEX": "1", "FIND_LINKS": str(tmp_path / "none"), "CONFIG_FILE": "/dev/null"}.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    monkeypatch.setitem(source.SHA256_OF_ARCHIVE, "9.9.9", hashlib.sha256(archive.read_bytes()).hexdigest())
    assert source.download("9.9.9", tmp_path) == archive
    archive.write_bytes(archive.read_bytes()[:-1])
    with pytest.raises(source.CommonTestsUnavailable, match="expected"):
        source.download("9.9.9", tmp_path)


def test_extract_refuses_what_is_not_the_version(tmp_path: Path):
    archive = make_archive(tmp_path / "a.tar.gz", "9.9.8")
    with pytest.raises(source.CommonTestsUnavailable, match="is transformers 9.9.8, expected 9.9.9"):
        source.extract(archive, "9.9.9", tmp_path / "out")
    archive.write_bytes(archive.read_bytes()[:60])
    with pytest.raises(source.CommonTestsUnavailable, match="cannot be read"):
        source.extract(archive, "9.9.8", tmp_path / "out2")


def test_extract_names_absent_tests(tmp_path: Path):
    archive = make_archive(tmp_path / "a.tar.gz", files={"tests/test_modeling_common.py": b""})
    with pytest.raises(source.CommonTestsUnavailable, match="test_configuration_common.py"):
        source.extract(archive, "9.9.9", tmp_path / "out")


def test_extract_takes_the_test_files_only(tmp_path: Path):
    files = {**FILES, "setup.py": b"", "src/transformers/__init__.py": b"", "tests/deep/test_x.py": b""}
    folder = source.extract(make_archive(tmp_path / "a.tar.gz", files=files), "9.9.9", tmp_path / "out")
    assert {path.name for path in folder.iterdir()} == {*source.NEEDED, "__init__.py", "checksums.json"}


def test_every_row_of_the_table_names_a_test():
    from . import test_model, test_processor

    names = {*dir(test_model.RSMoEModelTest), *dir(test_processor.RSMoEProcessorTest)}
    unused = [skip.tests for skip in skips.SKIPS if not any(fnmatchcase(name, skip.tests) for name in names)]
    assert not unused
