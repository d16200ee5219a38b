"""The wheel holds the package, its data and nothing else; its configurations are found where it is installed."""

import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

import modeling_rsmoe


ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    pytest.importorskip("hatchling", reason="no hatchling here: pip install hatchling")
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", folder]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (file,) = folder.iterdir()
    return file


def files_of(folder: Path) -> set[str]:
    return {
        path.relative_to(ROOT).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


@pytest.mark.slow
def test_the_wheel_is_one_package_with_all_its_data(wheel):
    info = f"rsmoe-{modeling_rsmoe.__version__}.dist-info/"
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.startswith(info)}
        metadata = archive.read(f"{info}METADATA").decode()
    settings = {f"modeling_rsmoe/{name}" for name in files_of(ROOT / "hub_configs")}
    assert names == files_of(ROOT / "modeling_rsmoe") | settings
    assert {"modeling_rsmoe/py.typed", "modeling_rsmoe/hub_configs/rs-moe-nano/trained.safetensors"} <= names
    assert f"\nVersion: {modeling_rsmoe.__version__}\n" in metadata and "\nLicense-File: LICENSE\n" in metadata
    assert wheel.stat().st_size < 100e6  # PyPI's limit


@pytest.mark.slow
def test_an_installed_package_finds_its_configurations(wheel, tmp_path):
    """Unpacked, as pip does; tests/installed.py asks the same of a real installation (`make test-wheel`)."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    code = "from modeling_rsmoe.hub.sources import HUB_CONFIGS, known_names; print(HUB_CONFIGS, known_names())"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.strip() == f"{tmp_path / 'modeling_rsmoe' / 'hub_configs'} ['rs-moe-nano']", done.stderr


def test_every_requirement_has_a_lower_bound():
    """So that `uv pip install --resolution lowest-direct` gives the oldest versions that we test."""
    extras = PROJECT["optional-dependencies"]
    lines = [*PROJECT["dependencies"], *(line for extra in extras.values() for line in extra)]
    assert [line for line in lines if ">=" not in line and not line.startswith("rsmoe[")] == []


def test_the_version_is_the_same_everywhere():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    heading = f"## {citation['version']} - {citation['date-released']}\n"
    assert citation["version"] == modeling_rsmoe.__version__
    assert heading in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_release_notes_are_the_section_of_the_changelog():
    def make(target: str) -> str:
        done = subprocess.run(["make", "-s", target], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
        return done.stdout

    assert make("version") == f"{modeling_rsmoe.__version__}\n"
    notes = make("release-notes")
    assert notes.strip().startswith("The first release.") and "\n## " not in notes
    assert notes in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
