"""Fetches transformers' common tests: the part of its `tests` folder that its source distribution carries.

The tests are never committed. They come from the source distribution of the *installed* version, so that tests and
library always belong together, and stay in a cache folder: `$RSMOE_CACHE` or `~/.cache/rsmoe`.

The source distribution (5.23.0: 10 MB) carries `tests/test_*.py` and nothing below: no `tests/generation`, no
`tests/exporters`, no `tests/utils`. `stand_ins.py` provides what the common tests import from there.
"""

import hashlib
import importlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import types
from pathlib import Path

import transformers


PACKAGE = "transformers_common_tests"
"""Name under which the fetched folder can be imported."""

NEEDED = ("test_modeling_common.py", "test_configuration_common.py", "test_processing_common.py")

SHA256_OF_ARCHIVE = {"5.23.0": "19d647a4d5d903a7c644ca5cde2d86efc3dde7d8c687ae7988806ff2205efa71"}
"""Versions this project was tested with. Another version is checked by the version in its PKG-INFO only."""


class CommonTestsUnavailable(RuntimeError):
    """The source distribution could not be had, or is not what it should be."""


def cache_folder() -> Path:
    """Returns the folder of this project's caches: `$RSMOE_CACHE`, else `~/.cache/rsmoe`."""
    return Path(os.environ.get("RSMOE_CACHE") or Path.home() / ".cache" / "rsmoe")


def fetch(version: str = transformers.__version__, cache: Path | None = None) -> Path:
    """Returns the folder with the common tests of `version`, downloading them if the cache lacks them or is damaged.

    Args:
        version: Version of transformers; the installed one by default.
        cache: Folder of the caches; `cache_folder()` by default.

    Raises:
        CommonTestsUnavailable: No network, no such version, or a download that is not the expected one.
    """
    folder = (cache or cache_folder()) / "transformers-tests" / version
    if is_whole(folder):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{version}-") as work:
        archive = download(version, Path(work))
        fresh = extract(archive, version, Path(work) / "tests")
        if folder.exists():  # damaged: is_whole said so
            shutil.rmtree(folder, ignore_errors=True)
        try:
            fresh.rename(folder)
        except OSError:
            if not is_whole(folder):  # otherwise another process was quicker, and its copy is as good
                raise
    return folder


def download(version: str, folder: Path) -> Path:
    """Downloads the source distribution of `version` into `folder` with this interpreter's pip and its settings."""
    # Not `--no-binary :all:`: pip applies it to the build requirements too, and would build setuptools from source.
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "transformers"]
    command += ["--dest", str(folder), f"transformers=={version}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=600)
        said = (done.stderr or done.stdout).strip()
    except subprocess.TimeoutExpired:
        said = "no answer within 10 minutes"
    found = sorted(folder.glob("transformers-*.tar.gz"))
    if not found:
        raise CommonTestsUnavailable(
            f"the source distribution of transformers {version} could not be downloaded, so its common tests cannot "
            "run. Connect this machine to a package index (or copy the cache of a machine that has it and set "
            "RSMOE_CACHE) and run again.\n"
            f"command: {' '.join(command)}\npip said: {said[-2000:] or 'nothing'}"
        )
    archive = found[0]
    expected = SHA256_OF_ARCHIVE.get(version)
    actual = sha256(archive)
    if expected is not None and actual != expected:
        raise CommonTestsUnavailable(
            f"{archive.name} has sha256 {actual}, expected {expected}: damaged, or another file; run again."
        )
    return archive


def extract(archive: Path, version: str, folder: Path) -> Path:
    """Writes the test files of `archive` and a record of their checksums into the new `folder`, and returns it."""
    folder.mkdir(parents=True)
    sums = {}
    try:
        with tarfile.open(archive, "r:gz") as tar:
            found = read_version(tar)
            if found != version:
                raise CommonTestsUnavailable(f"{archive.name} is transformers {found}, expected {version}.")
            for member in tar:
                parts = member.name.split("/")
                if not (member.isfile() and len(parts) == 3 and parts[1] == "tests" and parts[2].endswith(".py")):
                    continue
                data = read_member(tar, member)
                (folder / parts[2]).write_bytes(data)
                sums[parts[2]] = hashlib.sha256(data).hexdigest()
    except (tarfile.TarError, EOFError, OSError) as error:
        raise CommonTestsUnavailable(f"{archive.name} cannot be read ({error}): damaged; run again.") from error
    absent = [name for name in NEEDED if name not in sums]
    if absent:
        raise CommonTestsUnavailable(
            f"the source distribution of transformers {version} has no tests/{', tests/'.join(absent)}; "
            "install a version that ships its common tests (5.23.0 does)."
        )
    (folder / "__init__.py").write_text("")  # test_configuration_common.py wants its folder to be importable
    record = {"version": version, "archive_sha256": sha256(archive), "files": sums}
    (folder / "checksums.json").write_text(json.dumps(record, indent=2) + "\n")
    return folder


def read_member(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    """Returns the bytes of a file in an open archive (none for what is no file)."""
    file = tar.extractfile(member)
    return b"" if file is None else file.read()


def read_version(tar: tarfile.TarFile) -> str:
    """Returns the version that an open source distribution names in its top PKG-INFO ("unknown" without one)."""
    for member in tar.getmembers():
        if member.name.count("/") == 1 and member.name.endswith("/PKG-INFO"):
            for line in read_member(tar, member).decode("utf-8", "replace").splitlines():
                if line.startswith("Version: "):
                    return line.removeprefix("Version: ").strip()
    return "unknown"


def is_whole(folder: Path) -> bool:
    """Says whether `folder` holds every test file with the checksum recorded when it was extracted."""
    try:
        files = json.loads((folder / "checksums.json").read_text())["files"]
        return (folder / "__init__.py").exists() and all(sha256(folder / name) == sums for name, sums in files.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def sha256(path: Path) -> str:
    """Returns the hex sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load(name: str) -> types.ModuleType:
    """Imports a fetched test module, such as `test_modeling_common`, with stand-ins for what it lacks."""
    if PACKAGE not in sys.modules:
        from . import stand_ins

        package = types.ModuleType(PACKAGE)
        package.__path__ = [str(fetch())]
        sys.modules[PACKAGE] = package
        stand_ins.install(PACKAGE)
    return importlib.import_module(f"{PACKAGE}.{name}")
