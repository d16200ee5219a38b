"""What is no regular file is refused wherever a file is named, and nothing waits for it."""

import re
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from modeling_rsmoe import RSMoEError
from modeling_rsmoe.cli import app
from modeling_rsmoe.utils.files import check_input

from .conftest import NO_FILES, refusal


@pytest.mark.parametrize("kind", NO_FILES)
def test_no_regular_file(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    NO_FILES[kind](path)
    with pytest.raises(RSMoEError, match="a.tif is (not a regular file|a folder)"):
        check_input(path, "an image")


@pytest.mark.parametrize("kind", NO_FILES)
def test_as_an_image(kind: str, tmp_path: Path, checkpoint: Path) -> None:
    path = tmp_path / "a.png"
    NO_FILES[kind](path)
    what = "holds no images" if kind == "folder" else "is not a regular file"
    output = ("--output", tmp_path / "out.parquet") if kind == "folder" else ()
    assert what in refusal("caption", path, "--model", checkpoint, *output)


FILES = ["settings.yaml", "captions.jsonl", "list.txt", "report.json", "predictions.jsonl", "features.parquet"]
FILES += ["scene.tif"]


@pytest.mark.parametrize("kind", ["FIFO", "device"])
@pytest.mark.parametrize("name", FILES)
def test_as_another_file(name: str, kind: str, tmp_path: Path, checkpoint: Path, data: Path) -> None:
    """Every other file that a command is given: none is opened, whatever reads it."""
    file, output, model = tmp_path / name, tmp_path / "out.parquet", ("--model", checkpoint)
    NO_FILES[kind](file)
    report, predictions = tmp_path / "new.json", ("--predictions", file)
    words = {
        "settings.yaml": ("train", "stage2", "--config", file, "--data", data, "--output", tmp_path / "run", *model),
        "captions.jsonl": ("evaluate", checkpoint, "--data", tmp_path, "--output", report),
        "list.txt": ("caption", file, *model, "--output", output),
        "report.json": ("card", checkpoint, "--scores", file),
        "predictions.jsonl": ("evaluate", checkpoint, "--data", data, "--output", report, *predictions),
        "features.parquet": ("ask", file, "Is there a road?", *model),
        "scene.tif": ("caption", file, "--tile", 64, *model, "--output", tmp_path / "out.jsonl"),
    }[name]
    assert re.search(f"{name} is (not a regular file|missing)", refusal(*words))
    assert not output.exists() and not report.exists()


@pytest.mark.parametrize("kind", NO_FILES)
def test_in_a_collection_it_is_a_row(kind: str, tmp_path: Path, checkpoint: Path, image: Path) -> None:
    """One bad entry does not end a run, and does not hang it."""
    folder, output = tmp_path / "tiles", tmp_path / "out.parquet"
    folder.mkdir()
    NO_FILES[kind](folder / "b.png")
    shutil.copy(image, folder / "a.png")
    run = CliRunner().invoke(app, ["caption", str(folder), "--model", str(checkpoint), "--output", str(output)])
    rows = pq.read_table(output).to_pylist()
    assert run.exit_code == 0 and rows[0]["error"] is None
    assert kind == "folder" or "b.png is not a regular file" in rows[1]["error"]  # a folder is walked into
