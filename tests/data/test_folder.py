"""Writing a data folder, ImageFolders of users, and Hugging Face datasets of both, with Parquet."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image, UnidentifiedImageError

from modeling_rsmoe.data.benchmarks import BENCHMARKS, load
from modeling_rsmoe.data.folder import to_datasets, write_folder, write_parquet
from modeling_rsmoe.data.records import (
    CaptionRecord,
    QuestionRecord,
    read_captions,
    read_questions,
)
from modeling_rsmoe.errors_rsmoe import RSMoEError

from .published import PUBLISHED, image


@pytest.fixture
def rsicd(tmp_path: Path) -> Path:
    folder = tmp_path / "rsicd"
    PUBLISHED["rsicd"](folder)
    return folder


def convert(name: str, source: Path, out: Path, splits: list[str] | None = None, **options):
    records = BENCHMARKS[name].records(source, splits)
    return write_folder(records, source, out, BENCHMARKS[name].name, **options)


def lines_of(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


# ---- writing


def test_a_folder_is_written_as_records_read_it(rsicd, tmp_path):
    out = tmp_path / "new/data"
    counts = convert("rsicd", rsicd, out)
    assert counts == {("captions.jsonl", "RSICD", "train"): 2} | {
        ("captions.jsonl", "RSICD", split): 1 for split in ("val", "test")
    }
    assert lines_of(out / "captions.jsonl")[0] == {
        "image": "images/RSICD/RSICD_images/airport_1.jpg",
        "dataset": "RSICD",
        "split": "train",
        "captions": ["a airport_1.jpg seen from above ."] * 4 + ["many trees ."],
    }
    names = ("airport_1.jpg", "airport_2.jpg", "00001.jpg", "pond_3.jpg")
    assert files(out) == {"captions.jsonl"} | {f"images/RSICD/RSICD_images/{name}" for name in names}
    for name in names:
        copy = out / "images/RSICD/RSICD_images" / name
        assert copy.read_bytes() == (rsicd / "RSICD_images" / name).read_bytes()
    originals, copies = list(BENCHMARKS["rsicd"].records(rsicd)), read_captions(out)
    assert [record.captions for record in copies] == [record.captions for record in originals]


def test_both_kinds_of_records_and_questions_kept_apart(tmp_path):
    PUBLISHED["rsieval"](tmp_path / "eval")
    PUBLISHED["rsivqa"](tmp_path / "rsivqa")
    convert("rsieval", tmp_path / "eval", tmp_path / "out")
    convert("rsivqa", tmp_path / "rsivqa", tmp_path / "out")
    convert(
        "rsivqa-scenes",
        tmp_path / "rsivqa",
        tmp_path / "out",
        questions_file=BENCHMARKS["rsivqa-scenes"].questions_file,
    )
    assert len(read_captions(tmp_path / "out")) == 1
    assert len(read_questions(tmp_path / "out")) == 2 + 7
    scenes = read_questions(tmp_path / "out", name="vqa_scene_derived.jsonl")
    assert {record.dataset for record in scenes} == {"RSIVQA-UCM", "RSIVQA-Sydney", "RSIVQA-RSICD"}


def test_the_same_dataset_and_split_is_replaced_and_all_else_kept(rsicd, tmp_path):
    PUBLISHED["ucm"](tmp_path / "ucm")
    out = tmp_path / "out"
    convert("rsicd", rsicd, out, ["train"])
    convert("ucm", tmp_path / "ucm", out)
    convert("rsicd", rsicd, out, ["val"])
    text = (rsicd / "dataset_rsicd.json").read_text().replace("many trees .", "some trees .")
    (rsicd / "dataset_rsicd.json").write_text(text)
    convert("rsicd", rsicd, out, ["train"])
    found = sorted((line["dataset"], line["split"], line["captions"][4]) for line in lines_of(out / "captions.jsonl"))
    assert found == [
        ("RSICD", "train", "some trees ."),
        ("RSICD", "train", "some trees ."),
        ("RSICD", "val", "many trees ."),
        ("UCM-Captions", "test", "many trees ."),
        ("UCM-Captions", "train", "many trees ."),
        ("UCM-Captions", "val", "many trees ."),
    ]
    (out / "captions.jsonl").write_text("[1]\n")
    with pytest.raises(RSMoEError, match=r"captions.jsonl:1 is not a record of a data folder"):
        convert("rsicd", rsicd, out)
    assert (out / "captions.jsonl").read_text() == "[1]\n"


def test_missing_images_are_counted_and_nothing_is_written(rsicd, tmp_path):
    convert("rsicd", rsicd, tmp_path / "out", ["test"])
    before = files(tmp_path / "out")
    for name in ("airport_1.jpg", "airport_2.jpg"):
        (rsicd / "RSICD_images" / name).unlink()
    with pytest.raises(
        RSMoEError, match=r"2 of 4 images are missing: \S+/airport_1.jpg, \S+/airport_2.jpg; get them there"
    ):
        convert("rsicd", rsicd, tmp_path / "out", remedy="get them there")
    assert files(tmp_path / "out") == before
    assert [line["split"] for line in lines_of(tmp_path / "out/captions.jsonl")] == ["test"]


def test_an_interrupted_run_leaves_no_half_file_and_the_next_goes_on(rsicd, tmp_path, monkeypatch):
    out = tmp_path / "out"

    def interrupted() -> Iterator[CaptionRecord]:
        yield from list(BENCHMARKS["rsicd"].records(rsicd))[:2]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_folder(interrupted(), rsicd, out, "RSICD")
    assert files(out) == set()

    replace, seen = os.replace, []

    def stop_at_the_third(part: Path, target: Path) -> None:
        seen.append(target)
        if len(seen) == 3:
            raise KeyboardInterrupt
        replace(part, target)

    monkeypatch.setattr(os, "replace", stop_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        convert("rsicd", rsicd, out)
    assert len(files(out)) == 2 and all(name.endswith(".jpg") for name in files(out))
    monkeypatch.setattr(os, "replace", replace)
    times = {name: (out / name).stat().st_mtime_ns for name in files(out)}
    convert("rsicd", rsicd, out)
    assert len(read_captions(out)) == 4
    assert {name: (out / name).stat().st_mtime_ns for name in times} == times  # not copied again


def test_images_may_be_linked(rsicd, tmp_path):
    convert("rsicd", rsicd, tmp_path / "out", link=True)
    image_file = rsicd / "RSICD_images/airport_1.jpg"
    assert (tmp_path / "out/images/RSICD/RSICD_images/airport_1.jpg").samefile(image_file)
    assert image_file.stat().st_nlink == 2


def test_a_disk_that_cannot_be_written_is_an_error_not_a_traceback(rsicd, tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(RSMoEError, match=r"cannot write \S+/file from \S+/rsicd .*; check the permissions"):
        convert("rsicd", rsicd, tmp_path / "file")


def test_progress_is_reported(rsicd, tmp_path):
    reports: list[tuple] = []

    def progress(message: str, done: int = 0, total: int | None = None, unit: str = "") -> None:
        reports.append((message, done, total, unit))

    convert("rsicd", rsicd, tmp_path / "out", progress=progress)
    copies = [("copying 4 images", done, 4, "images") for done in range(4)]
    assert reports == [("reading RSICD", 0, None, "records"), *copies]


# ---- ImageFolders of users


def image_folder(folder: Path, lines: dict[str, list[dict]]) -> Path:
    """An ImageFolder: its metadata files and their lines; the images named there are made."""
    for name, values in lines.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(json.dumps(value) + "\n" for value in values))
        for value in values:
            image(file.parent / value["file_name"])
    return folder


def test_an_image_folder_is_read_as_a_data_folder(tmp_path):
    folder = image_folder(
        tmp_path / "harbors",
        {
            "metadata.jsonl": [
                {"file_name": "a.png", "text": "a harbor ."},
                {"file_name": "train/b.png", "caption": "a pier ."},
                {"file_name": "c.png", "captions": ["two ships .", "ships ."], "split": "val", "dataset": "mine"},
                {"file_name": "a.png", "question": "How many?", "answer": "2"},
                {"file_name": "a.png", "question": "A ship?", "answer": "yes", "question_type": "presence"},
            ]
        },
    )
    assert read_captions(folder) == [
        CaptionRecord(folder / "a.png", "harbors", "test", ("a harbor .",)),
        CaptionRecord(folder / "train/b.png", "harbors", "train", ("a pier .",)),
        CaptionRecord(folder / "c.png", "mine", "val", ("two ships .", "ships .")),
    ]
    assert read_questions(folder, "test") == [
        QuestionRecord(folder / "a.png", "harbors", "test", "How many?", "other", "2"),
        QuestionRecord(folder / "a.png", "harbors", "test", "A ship?", "presence", "yes"),
    ]
    with pytest.raises(
        RSMoEError, match=r'unknown split "dev" in \S+/harbors/metadata.jsonl; known: test, train, val'
    ):
        read_captions(folder, "dev")


def test_each_split_may_have_its_own_metadata(tmp_path):
    row = {"file_name": "a.png", "text": "a pond ."}
    folder = image_folder(
        tmp_path / "f", {f"{name}/metadata.jsonl": [row] for name in ("train", "validation", "extra")}
    )
    assert [(record.split, record.image) for record in read_captions(folder)] == [
        ("train", folder / "train/a.png"),
        ("val", folder / "validation/a.png"),
    ]
    with pytest.raises(RSMoEError, match=r"f/metadata.jsonl holds no records|f/vqa.jsonl is missing"):
        read_questions(folder)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"file_name": "a.png"}, r'metadata\.jsonl:1: field "captions" is missing \(found: .*file_name'),
        ({"text": "a pond ."}, r'metadata\.jsonl:1: field "file_name" is missing'),
        ({"file_name": "../a.png", "text": "a pond ."}, r'metadata\.jsonl:1: image "\.\./a\.png" leaves'),
        ({"file_name": "a.png", "text": ""}, r'metadata\.jsonl:1: "captions" is \[\'\'\]'),
        ({"file_name": "a.png", "question": "How many?"}, r'metadata\.jsonl:1: field "answer" is missing'),
    ],
)
def test_a_bad_line_of_metadata_is_named(line, message, tmp_path):
    (tmp_path / "metadata.jsonl").write_text(json.dumps(line) + "\n")
    with pytest.raises(RSMoEError, match=message):
        (read_questions if "question" in line else read_captions)(tmp_path)


def test_metadata_without_a_line_is_refused(tmp_path):
    (tmp_path / "metadata.jsonl").write_text("\n")
    with pytest.raises(RSMoEError, match=r"metadata.jsonl holds no records"):
        read_captions(tmp_path)


# ---- Hugging Face datasets


def test_to_datasets_of_a_data_folder_and_of_an_image_folder(rsicd, tmp_path):
    convert("rsicd", rsicd, tmp_path / "out")
    found = to_datasets(tmp_path / "out", "captioning")
    assert {split: len(rows) for split, rows in found.items()} == {"train": 2, "val": 1, "test": 1}
    folder = image_folder(tmp_path / "f", {"metadata.jsonl": [{"file_name": "a.png", "question": "?", "answer": "2"}]})
    row = to_datasets(folder, "vqa")["test"][0]
    assert (row["dataset"], row["question"], row["question_type"], row["answer"]) == ("f", "?", "other", "2")


def test_a_broken_image_fails_when_it_is_looked_at_not_before(rsicd):
    (rsicd / "RSICD_images/airport_2.jpg").write_bytes(b"no image")
    train = load("rsicd", rsicd)["train"]
    assert train[0]["image"].size == (12, 12)
    assert train["captions"][1][4] == "many trees ."
    with pytest.raises(UnidentifiedImageError):
        train[1]["image"]


def test_parquet_holds_the_images(rsicd, tmp_path):
    from datasets import Image as ImageColumn
    from datasets import load_dataset

    tables = load("rsicd", rsicd)
    pixels = [row["image"].tobytes() for row in tables["train"]]
    written = write_parquet(tables, tmp_path / "out", shard_size=1)
    assert [file.name for file in written] == [
        "train-00000-of-00002.parquet",
        "train-00001-of-00002.parquet",
        "val-00000-of-00001.parquet",
        "test-00000-of-00001.parquet",
    ]
    assert files(tmp_path / "out") == {f"data/{file.name}" for file in written}
    for file in (rsicd / "RSICD_images").iterdir():
        file.unlink()
    back = load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    assert set(back) == {"train", "val", "test"} and back["val"].features == tables["val"].features
    assert [row["image"].tobytes() for row in back["train"]] == pixels
    assert back["train"]["captions"][:] == tables["train"]["captions"][:]
    stored = back["train"].cast_column("image", ImageColumn(decode=False))[0]["image"]
    assert stored["bytes"] and stored["path"] == "airport_1.jpg"  # not where it was on this machine


def test_push_to_hub_uploads_the_images(tmp_path, monkeypatch):
    """The Hub is replaced where files leave the machine: what would be uploaded is read back. TIFF stays TIFF."""
    from datasets import Dataset
    from huggingface_hub import HfApi

    PUBLISHED["rsvqa-lr"](tmp_path)
    rows = load("rsvqa-lr", tmp_path)["test"]
    uploaded: list[bytes] = []

    def keep(self, *, additions, **options) -> None:
        uploaded.extend(Path(addition.path_or_fileobj).read_bytes() for addition in additions)
        raise InterruptedError  # far enough

    monkeypatch.setattr(HfApi, "repo_info", lambda self, name, **options: SimpleNamespace(id=name))
    monkeypatch.setattr(HfApi, "preupload_lfs_files", keep)
    with pytest.raises(InterruptedError):
        rows.push_to_hub("someone/rsvqa", split="test")
    (tmp_path / "pushed.parquet").write_bytes(uploaded[0])
    (tmp_path / "Images_LR/3.tif").rename(tmp_path / "elsewhere.tif")
    back = Dataset.from_parquet(str(tmp_path / "pushed.parquet"), cache_dir=str(tmp_path / "cache"))
    with Image.open(tmp_path / "elsewhere.tif") as original:
        assert back[1]["image"].format == "TIFF" and back[1]["image"].tobytes() == original.tobytes()
