"""`rsmoe data`: what it writes, says and refuses."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from modeling_rsmoe.cli import app
from modeling_rsmoe.data.benchmarks import BENCHMARKS
from modeling_rsmoe.data.labels import OBJECTS_FILE, SCENES_FILE, read_objects, read_scenes
from modeling_rsmoe.data.records import read_captions, read_questions
from tests.data.published import PUBLISHED, image


def run(*arguments: Any) -> Result:
    """One command, as from a shell."""
    return CliRunner().invoke(
        app, [str(argument) for argument in arguments], catch_exceptions=False, prog_name="rsmoe"
    )


def error(result: Result) -> str:
    """The error line of a command that was refused."""
    assert result.exit_code == 2 and result.stdout == ""
    return result.stderr.splitlines()[-1].removeprefix("rsmoe: error: ")


def test_list_names_every_benchmark() -> None:
    result = run("data", "list")
    assert result.exit_code == 0
    lines = [line.split() for line in result.stdout.splitlines()]
    assert [line[0] for line in lines] == [*BENCHMARKS, "own"]
    assert lines[0][-1] == BENCHMARKS["rsicd"].url


def test_data_alone_shows_its_commands() -> None:
    result = run("data")
    assert result.exit_code == 0 and "convert" in result.stdout and "list" in result.stdout


@pytest.mark.parametrize("name", BENCHMARKS)
def test_convert_makes_a_folder_that_can_be_read(name: str, tmp_path: Path) -> None:
    PUBLISHED[name](tmp_path / "source")
    result = run("data", "convert", name.upper(), tmp_path / "source", tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    benchmark, records = BENCHMARKS[name], []
    if "captioning" in benchmark.tasks:
        records += read_captions(tmp_path / "out")
    if "vqa" in benchmark.tasks:
        records += read_questions(tmp_path / "out", name=benchmark.questions_file)
    for read, file in ((read_objects, OBJECTS_FILE), (read_scenes, SCENES_FILE)):
        records += read(tmp_path / "out") if (tmp_path / "out" / file).is_file() else []
    assert len(records) == len(list(benchmark.records(tmp_path / "source")))
    assert sum(int(line.split()[-2]) for line in result.stdout.splitlines()) == len(records)
    assert f"copying {len({record.image for record in records})} images ..." in result.stderr


def test_convert_one_split_with_links(tmp_path: Path) -> None:
    PUBLISHED["rsvqa-hr"](tmp_path / "source")
    out = tmp_path / "out"
    arguments = ("data", "convert", "rsvqa-hr", tmp_path / "source", out, "--split", "test", "--split", "test_phili")
    result = run(*arguments, "--link")
    assert result.stdout.splitlines() == [
        f"{out}/vqa.jsonl: RSVQA-HR test, 2 records",
        f"{out}/vqa.jsonl: RSVQA-HR test_phili, 2 records",
    ]
    assert (out / "images/RSVQA-HR/Data/3.tif").samefile(tmp_path / "source/Data/3.tif")
    assert sorted(path.name for path in out.iterdir()) == ["images", "vqa.jsonl"]


def test_convert_an_image_folder(tmp_path: Path) -> None:
    source = tmp_path / "harbors"
    lines = [{"file_name": "train/a.png", "text": "a harbor ."}, {"file_name": "b.png", "text": "a pier ."}]
    for line in lines:
        image(source / line["file_name"])
    (source / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert run("data", "convert", "imagefolder", source, tmp_path / "out").exit_code == 0
    assert [(record.dataset, record.split) for record in read_captions(tmp_path / "out")] == [
        ("harbors", "train"),
        ("harbors", "test"),
    ]
    assert (tmp_path / "out/images/harbors/train/a.png").is_file()
    refused = run("data", "convert", "imagefolder", source, tmp_path / "out", "--split", "val")
    assert error(refused) == f'unknown split "val" in {source}; known: test, train'


def test_convert_own_images_without_splits(tmp_path: Path) -> None:
    source = tmp_path / "mine"
    for number in range(10):
        image(source / f"{number}.png")
    rows = [f"{number}.png;field {number}" for number in range(10)]
    (source / "captions.csv").write_text("\n".join(["image;caption", *rows]))
    result = run("data", "convert", "own", source, tmp_path / "out", "--test", "0.2", "--seed", "5")
    assert result.exit_code == 0, result.stderr
    counts = [line.split(": ")[1] for line in result.stdout.splitlines()]
    assert sorted(counts) == ["mine test, 2 records", "mine train, 7 records", "mine val, 1 records"]
    note = " ".join(result.stderr.split())
    assert "splits made by image: train 7, val 1, test 2 (--val 0.1 --test 0.2 --seed 5)" in note
    assert len(read_captions(tmp_path / "out", "test")) == 2
    refused = run("data", "convert", "rsicd", source, tmp_path / "out", "--val", "0.2")
    assert error(refused) == "--val, --test and --seed are for NAME own; RSICD has its own splits"
    (source / "3.png").write_bytes(b"no image")
    assert "1 of 10 images cannot be read" in error(run("data", "convert", "own", source, tmp_path / "new"))
    assert not (tmp_path / "new").exists()


def test_convert_refuses_in_one_line(tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    assert error(run("data", "convert", "flickr", source, out)).startswith(
        'there is no benchmark "flickr"; known: rsicd'
    )
    assert "source does not exist or is not a folder" in error(run("data", "convert", "rsicd", source, out))
    PUBLISHED["rsicd"](source)
    refused = run("data", "convert", "rsicd", source, out, "--split", "dev")
    assert error(refused) == 'RSICD has no split "dev"; known: train, val, test'
    assert not out.exists()
    (source / "RSICD_images/pond_3.jpg").unlink()
    message = error(run("data", "convert", "rsicd", source, out))
    assert message.startswith(
        f"1 of 4 images are missing: {source}/RSICD_images/pond_3.jpg; RSICD is published at https://"
    )
    assert "Missing argument" in error(run("data", "convert"))
    assert "No such command" in error(run("data", "download"))
