"""Each benchmark, read from a tiny copy of its published files: splits, texts, types, and what is wrong with them."""

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from modeling_rsmoe.data.benchmarks import BENCHMARKS, find, load
from modeling_rsmoe.data.benchmarks.files import hash_split
from modeling_rsmoe.data.benchmarks.rsivqa import question_type
from modeling_rsmoe.data.labels import ObjectRecord, SceneRecord
from modeling_rsmoe.data.records import CaptionRecord, QuestionRecord
from modeling_rsmoe.errors_rsmoe import RSMoEError

from .published import PUBLISHED, image


def published(name: str, folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    PUBLISHED[name](folder)
    return folder


def edit(file: Path, change: Callable[[Any], Any]) -> None:
    content = json.loads(file.read_text())
    file.write_text(json.dumps(change(content) or content))


def splits(records: list) -> Counter:
    return Counter(record.split for record in records)


def test_every_benchmark_has_a_tiny_copy_here_and_is_found_in_any_case():
    assert set(PUBLISHED) == set(BENCHMARKS)
    assert find("RSVQA-LR") is BENCHMARKS["rsvqa-lr"]
    with pytest.raises(RSMoEError, match=r'no benchmark "rsicdd"; known: rsicd, ucm, '):
        find("rsicdd")


# what each tiny copy holds: (kind, dataset, split) -> records
CONTENTS = {
    "rsicd": {("C", "RSICD", "train"): 2, ("C", "RSICD", "val"): 1, ("C", "RSICD", "test"): 1},
    "ucm": {("C", "UCM-Captions", split): 1 for split in ("train", "val", "test")},
    "sydney": {("C", "Sydney-Captions", split): 1 for split in ("train", "val", "test")},
    "nwpu": {("C", "NWPU-Captions", split): 1 for split in ("train", "val", "test")},
    "rsicap": {("C", "RSICap", "train"): 1},
    "rsieval": {("C", "RSIEval", "test"): 1, ("Q", "RSIEval", "test"): 2},
    "vrsbench": {
        ("C", "VRSBench", "train"): 1,
        ("Q", "VRSBench", "train"): 1,
        ("C", "VRSBench", "test"): 1,
        ("Q", "VRSBench", "test"): 2,
    },
    "rsvqa-lr": {("Q", "RSVQA-LR", split): 2 for split in ("train", "val", "test")},
    "rsvqa-hr": {("Q", "RSVQA-HR", split): 2 for split in ("train", "val", "test", "test_phili")},
    "rsivqa": {
        ("Q", "RSIVQA-UCM", "train"): 2,
        ("Q", "RSIVQA-UCM", "val"): 1,
        ("Q", "RSIVQA-UCM", "test"): 1,
        ("Q", "RSIVQA-DOTA", "train"): 1,
        ("Q", "RSIVQA-DOTA", "val"): 1,
        ("Q", "RSIVQA-HRRSD", hash_split("00001")): 1,
    },
    "rsivqa-scenes": {
        ("Q", "RSIVQA-UCM", "train"): 1,
        ("Q", "RSIVQA-Sydney", "val"): 1,
        ("Q", "RSIVQA-RSICD", "test"): 1,
    },
    "eurosat": dict(
        sorted(
            Counter(
                (kind, "EuroSAT", hash_split(name))
                for kind in "SQ"
                for name in ("AnnualCrop_1.jpg", "AnnualCrop_2.jpg", "SeaLake_10.jpg")
            ).items()
        )
    ),
    # train: airplane, bare soil, ship and trees are each asked about once where they are, once where not; 3 lists
    "ucm-multilabel": {
        ("O", "UCM-Multilabel", "train"): 3,
        ("Q", "UCM-Multilabel", "train"): 4 * 2 + 3,
        ("O", "UCM-Multilabel", "test"): 1,
        ("Q", "UCM-Multilabel", "test"): 1,
    },
    # train: of the two ports one has trees and one has none; 2 lists
    "aid-multilabel": {
        ("O", "AID-Multilabel", "train"): 2,
        ("Q", "AID-Multilabel", "train"): 2 + 2,
        ("O", "AID-Multilabel", "test"): 1,
        ("Q", "AID-Multilabel", "test"): 1,
    },
}


@pytest.mark.parametrize("name", BENCHMARKS)
def test_split_sizes_images_and_texts(name, tmp_path):
    folder = published(name, tmp_path)
    records = list(BENCHMARKS[name].records(folder))
    kinds = {CaptionRecord: "C", QuestionRecord: "Q", ObjectRecord: "O", SceneRecord: "S"}
    assert Counter((kinds[type(record)], record.dataset, record.split) for record in records) == CONTENTS[name]
    assert all(record.image.is_file() and record.image.is_relative_to(folder) for record in records)
    texts = []
    for record in records:
        fields = [record.question, record.question_type, record.answer] if isinstance(record, QuestionRecord) else []
        texts += [*getattr(record, "captions", ()), *fields]
    assert texts and all(text == " ".join(text.split()) for text in texts)
    some = BENCHMARKS[name].splits[-1]
    assert list(BENCHMARKS[name].records(folder, [some])) == [record for record in records if record.split == some]


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_folder_without_the_published_files_is_told_which_was_expected_where(name, tmp_path):
    benchmark = BENCHMARKS[name]
    with pytest.raises(RSMoEError, match=rf"{tmp_path}/\S+ is missing.* published at {benchmark.url}"):
        list(benchmark.records(tmp_path))
    with pytest.raises(RSMoEError, match=r"absent does not exist or is not a folder; give the folder with the pub"):
        list(benchmark.records(tmp_path / "absent"))
    with pytest.raises(RSMoEError, match=r'has no split "dev"; known: '):
        list(benchmark.records(tmp_path, ["dev"]))


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("rsicd", "dataset_rsicd.json"),
        ("ucm", "dataset.json"),
        ("sydney", "dataset.json"),
        ("nwpu", "dataset_nwpu.json"),
        ("rsicap", "captions.json"),
        ("rsieval", "annotations.json"),
        ("vrsbench", "VRSBench_EVAL_Cap.json"),
        ("vrsbench", "VRSBench_EVAL_vqa.json"),
        ("vrsbench", "Annotations_train/P0000_0002.json"),
        ("rsvqa-lr", "LR_split_val_questions.json"),
        ("rsvqa-lr", "LR_split_val_answers.json"),
        ("rsvqa-hr", "USGS_split_test_phili_images.json"),
        ("rsivqa", "UCM/dataset.json"),
    ],
)
def test_json_of_another_shape_is_named(name, file, tmp_path):
    folder = published(name, tmp_path)
    for content in ('{"a": ', "3", '{"images": {}}', '{"images": [1]}', '"text"', "[3]", '[{"image_id": 3}]', "[[]]"):
        (folder / file).write_text(content)
        with pytest.raises(RSMoEError, match=rf"^{folder / file}"):
            list(BENCHMARKS[name].records(folder))


# ---- captions


def test_captions_are_raw_but_for_runs_of_spaces_and_repeated_ones_stay(tmp_path):
    record = next(iter(BENCHMARKS["rsicd"].records(published("rsicd", tmp_path))))
    assert record.image == tmp_path / "RSICD_images/airport_1.jpg"
    assert record.captions == ("a airport_1.jpg seen from above .",) * 4 + ("many trees .",)
    (tmp_path / "annotations_rsicd").mkdir()
    shutil.move(tmp_path / "dataset_rsicd.json", tmp_path / "annotations_rsicd")  # as in the published archive
    assert len(list(BENCHMARKS["rsicd"].records(tmp_path))) == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[1].pop("filename"), r'images\[1\]: field "filename" is missing'),
        (lambda rows: rows[1].update(filename=7), r'images\[1\]: "filename" is 7'),
        (lambda rows: rows[1].update(filename="/etc/passwd"), r'images\[1\]: filename "/etc/passwd" is an absolute'),
        (lambda rows: rows[1].update(filename="../a.jpg"), r'images\[1\]: filename "../a.jpg" leaves'),
        (lambda rows: rows[1].update(split="restval"), r'images\[1\]: "split" is "restval", expected one of train, v'),
        (lambda rows: rows[1].update(sentences="a pond"), r"images\[1\]\.sentences: str found, expected a list"),
        (
            lambda rows: rows[1]["sentences"].append("a pond"),
            r"images\[1\]\.sentences\[5\]: str found, expected an ob",
        ),
        (lambda rows: rows[1]["sentences"][2].update(raw=1), r'images\[1\]\.sentences\[2\]: "raw" is 1'),
        (lambda rows: rows[1].update(sentences=[]), r"images\[1\]: it has no caption that is not empty"),
    ],
)
def test_a_bad_record_is_named_with_its_number_and_field(change, message, tmp_path):
    folder = published("rsicd", tmp_path)
    edit(folder / "dataset_rsicd.json", lambda content: change(content["images"]) and None)
    with pytest.raises(RSMoEError, match=message):
        list(BENCHMARKS["rsicd"].records(folder))


def test_nwpu_is_by_class_skips_an_empty_caption_and_the_image_that_was_never_published(tmp_path):
    folder = published("nwpu", tmp_path)
    records = list(BENCHMARKS["nwpu"].records(folder))
    assert records[0].image == folder / "NWPU_images/airplane/airplane_001.jpg"
    assert [len(record.captions) for record in records] == [5, 5, 4]
    assert records[0].captions[:2] == ("airplane_001.jpg one .", "two .")
    image(folder / "NWPU_images/airplane/airplane_111.jpg")
    assert len(list(BENCHMARKS["nwpu"].records(folder))) == 4
    for path in (folder / "NWPU_images").glob("*/*.jpg"):  # all in one folder
        path.rename(folder / "NWPU_images" / path.name)
    assert next(iter(BENCHMARKS["nwpu"].records(folder))).image == folder / "NWPU_images/airplane_001.jpg"
    edit(folder / "dataset_nwpu.json", lambda content: {"/etc": content["bridge"]})
    with pytest.raises(RSMoEError, match=r'/etc\[0\]: filename "/etc/bridge_001.jpg" is an absolute path'):
        list(BENCHMARKS["nwpu"].records(folder))


# ---- questions


def test_rsieval_has_a_caption_and_typed_questions_for_each_image(tmp_path):
    caption, first, second = BENCHMARKS["rsieval"].records(published("rsieval", tmp_path))
    assert caption.captions == ("Grassland with trees.",)
    assert (first.question, first.question_type, first.answer) == (
        "Does this image contains trees?",
        "presence",
        "Yes.",
    )
    assert second.question_type == "ab_position" and second.image == caption.image
    edit(
        tmp_path / "annotations.json", lambda content: content["annotations"][0]["qa_pairs"][1].pop("answer") and None
    )
    with pytest.raises(RSMoEError, match=r'annotations\[0\]\.qa_pairs\[1\]: field "answer" is missing'):
        list(BENCHMARKS["rsieval"].records(tmp_path))


def test_vrsbench_trains_on_the_annotations_and_tests_on_the_evaluation_files(tmp_path):
    folder = published("vrsbench", tmp_path)
    questions = [record for record in BENCHMARKS["vrsbench"].records(folder) if isinstance(record, QuestionRecord)]
    assert [(record.split, record.question, record.question_type, record.answer) for record in questions] == [
        ("train", "How many ships?", "object quantity", "2"),
        ("test", "Is there a ship?", "object existence", "Yes"),
        ("test", "What color is it?", "object color", "White"),
    ]
    shutil.move(folder / "Images_val", folder / "inner")  # some unpackers make a folder for each archive
    (folder / "Images_val").mkdir()
    shutil.move(folder / "inner", folder / "Images_val/Images_val")
    shutil.rmtree(folder / "Annotations_train")  # not needed for the test set
    records = list(BENCHMARKS["vrsbench"].records(folder, ["test"]))
    assert len(records) == 3 and all(record.image.is_file() for record in records)


def test_rsvqa_reads_what_is_active_in_the_files_of_a_split(tmp_path):
    first, second = BENCHMARKS["rsvqa-hr"].records(published("rsvqa-hr", tmp_path), ["test_phili"])
    assert (first.question, first.question_type, first.answer) == (
        "Is there a pond next to a road?",
        "presence",
        "yes",
    )
    assert (second.question_type, second.answer) == ("count", "2203")
    assert first.image == tmp_path / "Data/9639.tif"
    edit(tmp_path / "USGS_split_val_images.json", lambda content: content["images"][1].update(active=False))
    with pytest.raises(RSMoEError, match="no records of RSVQA-HR in .* for the splits val"):  # of an inactive image
        list(BENCHMARKS["rsvqa-hr"].records(tmp_path, ["val"]))
    for file in tmp_path.glob("USGS_split_train_*"):
        file.unlink()  # other splits are not needed
    assert len(list(BENCHMARKS["rsvqa-hr"].records(tmp_path, ["test"]))) == 2
    with pytest.raises(RSMoEError, match=r"USGS_split_train_images.json is missing; RSVQA-HR is published at"):
        list(BENCHMARKS["rsvqa-hr"].records(tmp_path, ["train"]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda row: row.update(answers_ids=[]), r'questions\[2\]: "answers_ids" is \[\], but LR_split_val_answers'),
        (lambda row: row.update(answers_ids=[0]), r'questions\[2\]: "answers_ids" is \[0\], but LR_split_val_answers'),
        (lambda row: row.update(img_id="7"), r"questions\[2\]: \"img_id\" is '7', expected a whole number"),
        (lambda row: row.pop("active"), r'questions\[2\]: field "active" is missing'),
    ],
)
def test_a_bad_question_is_named(change, message, tmp_path):
    folder = published("rsvqa-lr", tmp_path)
    edit(folder / "LR_split_val_questions.json", lambda content: change(content["questions"][2]) and None)
    with pytest.raises(RSMoEError, match=message):
        list(BENCHMARKS["rsvqa-lr"].records(folder, ["val"]))


def test_rsivqa_takes_the_splits_of_the_captions_and_leaves_out_questions_about_nothing(tmp_path):
    folder = published("rsivqa", tmp_path)
    records = list(BENCHMARKS["rsivqa"].records(folder))
    human = [record for record in records if record.dataset == "RSIVQA-UCM"]
    assert [(record.image.name, record.split, record.question_type, record.answer) for record in human] == [
        ("1.tif", "train", "scene", "farmland"),
        ("1.tif", "train", "presence", "no"),
        ("2.tif", "val", "count", "about fifty"),
        ("3.tif", "test", "location", "left and right"),
    ]
    assert human[0].question == "What is the theme of this picture?"
    boxes = [record for record in records if record.dataset == "RSIVQA-DOTA"]
    assert [(record.image.name, record.question_type) for record in boxes] == [
        ("P0000.png", "count"),
        ("P0003.png", "presence"),
    ]
    # the scenes of images that people were asked about are left out
    scenes = list(BENCHMARKS["rsivqa-scenes"].records(folder))
    assert [record.image.relative_to(folder).as_posix() for record in scenes] == [
        "UCM/images/4.tif",
        "Sydney/images/1.tif",
        "AID/images/00001.jpg",
    ]
    assert {record.question_type for record in scenes} == {"scene"}
    assert find("rsivqa-scenes").questions_file != find("rsivqa").questions_file


def test_rsivqa_needs_only_the_parts_that_are_there_but_the_splits_of_their_captions(tmp_path):
    folder = published("rsivqa", tmp_path)
    for part in ("DOTA", "HRRSD", "Sydney", "AID"):
        shutil.rmtree(folder / part)
    assert {record.dataset for record in BENCHMARKS["rsivqa"].records(folder)} == {"RSIVQA-UCM"}
    (folder / "UCM/dataset.json").unlink()
    with pytest.raises(RSMoEError, match=r"the file \S+/UCM/dataset.json is missing; RSIVQA is published at"):
        list(BENCHMARKS["rsivqa"].records(folder))


@pytest.mark.parametrize("line", ["1.tif What is this?pond", "1.tif:What is this", ":What?yes", "1.tif:?yes"])
def test_a_line_of_another_shape_is_named(line, tmp_path):
    folder = published("rsivqa", tmp_path)
    (folder / "UCM/ucm_res.txt").write_text(f"1.tif:What is this?pond\n\n{line}\n")
    with pytest.raises(RSMoEError, match=r"ucm_res\.txt:3: .* found, expected image:question\?answer"):
        list(BENCHMARKS["rsivqa"].records(folder))


def test_question_types_by_wording_and_splits_by_hash():
    assert question_type("Are there boats?") == "other"
    assert question_type("what is the theme of this picture?") == "scene"
    counts = Counter(hash_split(f"{number:05d}") for number in range(1000))
    assert 760 < counts["train"] < 840 and 70 < counts["val"] < 130 and 70 < counts["test"] < 130
    # never to change: they are the splits in users' data folders
    assert [hash_split(name) for name in ("00001", "00002", "00008")] == ["val", "train", "test"]


# ---- as Hugging Face datasets


def test_load_makes_a_dataset_of_each_split(tmp_path):
    folder = published("rsvqa-hr", tmp_path)
    loaded = load("RSVQA-HR", folder)
    assert list(loaded) == ["train", "val", "test", "test_phili"]
    row = loaded["val"][1]
    assert list(row) == ["image", "dataset", "question", "question_type", "answer"]
    assert row["image"].size == (12, 12) and row["dataset"] == "RSVQA-HR" and row["answer"] == "2203"
    assert list(load("rsvqa-hr", folder, splits=["test"])) == ["test"]


def test_load_asks_for_the_task_where_there_are_two(tmp_path):
    folder = published("rsieval", tmp_path)
    with pytest.raises(RSMoEError, match=r'RSIEval has captions and questions; give task="captioning" or task="vqa"'):
        load("rsieval", folder)
    assert load("rsieval", folder, "captioning")["test"][0]["captions"] == ["Grassland with trees."]
    assert len(load("rsieval", folder, "vqa")["test"]) == 2
    with pytest.raises(RSMoEError, match=r'RSICap has no task "vqa"; known: captioning'):
        load("rsicap", folder, "vqa")


def test_load_names_missing_images(tmp_path):
    folder = published("rsicd", tmp_path)
    for name in ("airport_1.jpg", "pond_3.jpg"):
        (folder / "RSICD_images" / name).unlink()
    with pytest.raises(
        RSMoEError, match=r"2 of 4 images are missing: \S+airport_1.jpg, \S+pond_3.jpg; RSICD is published"
    ):
        load("rsicd", folder)
