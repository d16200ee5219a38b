"""The site: its Python runs or says why not, its tables say what outputs hold, and `make docs` builds it."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from modeling_rsmoe.cli import app
from modeling_rsmoe.utils import columns

from .scenes.rasters import UTM, noise, write_raster
from .test_confidence import RATED


ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
# `<!-- not run: WHY -->` stands before a block that no test runs.
WHY_NOT = r"(?:<!-- not run: (?P<why>.*?\S) -->\n+)?"
BLOCK = re.compile(WHY_NOT + r"^ *```(?P<language>\w*).*\n(?P<code>(?:.*\n)*?) *```$", re.M)
IS_PYTHON = re.compile(r"^ *(?:from [\w.]+ import |import \w)", re.M)


def python_of(page: Path) -> list[tuple[str, str | None]]:
    """Blocks of Python with the reason why each is not run; doctests are run by test_commands.py."""
    blocks = [block for block in BLOCK.finditer(page.read_text(encoding="utf-8")) if block["language"] == "python"]
    return [(block["code"], block["why"]) for block in blocks if ">>> " not in block["code"]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, shared_checkpoint: Callable[..., Path]) -> Path:
    """What the pages speak of: checkpoints, a tile, rasters, a data folder, features."""
    folder = tmp_path_factory.mktemp("reader")
    for name in ("nano", "rs-moe-nano"):
        shutil.copytree(shared_checkpoint(**RATED), folder / name)
    write_raster(folder / "chip.tif", noise(4, 40, 60))
    for name in ("scene", "before", "after"):
        write_raster(folder / f"{name}.tif", noise(3, 300, 300, "uint8", 255), photometric="rgb", **UTM)
    for source in (folder / "data", folder / "SOURCE"):
        source.mkdir()
        for number in range(10):
            pixels = np.random.default_rng(number).integers(0, 255, (64, 64, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(source / f"{number}.png")
    shutil.copy(folder / "data" / "0.png", folder / "tile.png")
    records = [{"dataset": "Tiny", "split": "test", "image": f"{n}.png", "captions": ["a port ."]} for n in range(10)]
    (folder / "data" / "captions.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    question = {"dataset": "Tiny", "split": "test", "image": "0.png", "question": "is it a port", "answer": "yes"}
    (folder / "data" / "vqa.jsonl").write_text(json.dumps({**question, "question_type": "presence"}) + "\n")
    own = ({"file_name": f"{number}.png", "text": "a port ."} for number in range(10))
    (folder / "SOURCE" / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in own))
    run("encode", folder / "data", "--model", folder / "nano", "--output", folder / "features.parquet")
    return folder


def run(*words: object) -> None:
    result = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("page", [page for page in PAGES if python_of(page)], ids=lambda page: page.stem)
def test_python_of_a_page_runs(page: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One block after the other: a later one may use what an earlier one made."""
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {}
    for code, why_not in python_of(page):
        if why_not is None:
            exec(compile(code, str(page), "exec"), names)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_python_is_called_python(page: Path) -> None:
    """Else its block would neither be colored nor run."""
    blocks = BLOCK.finditer(page.read_text(encoding="utf-8"))
    others = [block["code"] for block in blocks if block["language"] in ("", "py", "text", "pycon")]
    assert [code for code in others if IS_PYTHON.search(code)] == []


# ---- tables of columns


def expanded(table: columns.Columns) -> set[str]:
    experts = ("theme", "object", "relation")
    return {name.replace(columns.EXPERT, expert) for name in table for expert in experts}


def written(folder: Path, *words: object) -> dict[str, Any]:
    output = folder / "columns.geojson"
    run(*words, "--model", folder / "nano", "--tile", 150, "--output", output, "--overwrite")
    return json.loads(output.read_text())


def test_columns_of_scenes_are_told(folder: Path) -> None:
    caption = written(folder, "caption", folder / "scene.tif")
    answer = written(folder, "ask", folder / "scene.tif", "Is there a port?")
    detail = written(folder, "caption", folder / "scene.tif", "--detail")
    tiles = [set(made["features"][0]["properties"]) | {"geometry"} for made in (caption, answer, detail)]
    assert tiles[0] | tiles[1] | tiles[2] == expanded(columns.TILE)
    scenes = [set(made["rsmoe"]["scenes"][0]) for made in (caption, answer)]
    assert scenes[0] | scenes[1] == set(columns.SCENE)


def test_columns_of_two_dates_are_told(folder: Path) -> None:
    made = written(folder, "caption", folder / "before.tif", folder / "after.tif", "--change")
    names = set(made["features"][0]["properties"]) | {"geometry"}
    twice = {name for name in names if name.endswith(("_before", "_after"))}
    assert {name.rpartition("_")[0] for name in twice} <= expanded(columns.TILE) and "caption_before" in twice
    assert names - twice == {name for name in expanded(columns.CHANGE) if "..." not in name}


def test_columns_of_collections_are_told(folder: Path, tmp_path: Path) -> None:
    from pyarrow import parquet

    (tmp_path / "scenes").mkdir()
    shutil.copy(folder / "scene.tif", tmp_path / "scenes")
    model = ("--model", folder / "nano")
    run("caption", folder / "SOURCE", *model, "--output", tmp_path / "captions.parquet")
    run("caption", tmp_path / "scenes", *model, "--tile", 150, "--output", tmp_path / "tiles.parquet")
    for file, table in (
        (folder / "features.parquet", columns.FEATURES),
        (tmp_path / "captions.parquet", columns.IMAGE),
        (tmp_path / "tiles.parquet", columns.COLLECTION_TILE),
    ):
        assert set(parquet.read_schema(file).names) == expanded(table), file.name


def test_columns_of_predictions_are_told(folder: Path, tmp_path: Path) -> None:
    """Those of a question, which nobody reranks: the scores of captions start Java."""
    report = tmp_path / "report.json"
    run("evaluate", folder / "nano", "--data", folder / "data", "--task", "vqa", "--output", report)
    line = json.loads(report.with_suffix(".jsonl").read_text().splitlines()[-1])
    assert set(line) == set(columns.PREDICTION) - {"caption", "score", "sentences"}


# ---- the site


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    """As `make docs`; links and anchors that lead nowhere are warnings."""
    for module in ("mkdocs_jupyter", "material", "mkdocstrings_handlers.python"):
        pytest.importorskip(module, reason='pip install -c constraints-cpu.txt -e ".[docs]"')
    line = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    site = tmp_path / "site"
    pages = {page.relative_to(site).as_posix(): page.read_text() for page in site.rglob("*.html")}
    assert {"index.html", "reference/cli.html", "tutorials/scene.html"} <= pages.keys()
    everything = "".join(pages.values())
    assert "--max-new-tokens" in pages["reference/cli.html"] and "<!-- table" not in everything
    assert re.findall(r'href="[^":]*\.(?:md|ipynb)[#"]', everything) == []  # of pages, not of their sources
    loaded = re.findall(r'<(?:script|link|img|iframe)[^>]*(?:src|href)="(https?:[^"]*)"', everything)
    assert loaded == []  # it works without a network
