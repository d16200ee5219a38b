"""Labels of objects and scenes, read back, and the questions that are made of them."""

import json
from collections import Counter
from pathlib import Path

import pytest
from typer.testing import CliRunner

from modeling_rsmoe.cli import app
from modeling_rsmoe.data.benchmarks import BENCHMARKS
from modeling_rsmoe.data.folder import add_label_questions, write_folder
from modeling_rsmoe.data.label_questions import object_questions, scene_questions
from modeling_rsmoe.data.labels import ObjectRecord, SceneRecord, read_objects, read_scenes
from modeling_rsmoe.data.records import read_questions
from modeling_rsmoe.errors_rsmoe import RSMoEError

from .published import eurosat, image, ucm_multilabel


def record(name: str, split: str, *present: str, absent: tuple[str, ...] = ()) -> ObjectRecord:
    return ObjectRecord(Path(name), "Harbors", split, present, absent)


def test_presence_is_balanced_for_each_object_in_each_split():
    records = [record(f"{i}.png", "train", "ship", absent=("sea",)) for i in range(5)]
    records += [record(f"{i}.png", "train", "sea", absent=("ship",)) for i in range(5, 7)]
    records += [record("7.png", "test", "ship", "mobile-home", absent=("sea",)), record("8.png", "test", "crane")]
    questions = list(object_questions(records))
    presence = [one for one in questions if one.question_type == "presence"]
    counts = Counter((one.split, one.question, one.answer) for one in presence)
    assert counts == {
        ("train", question, answer): 2  # of five ships two are asked about: as many as there are images without
        for question in ("Are there ships?", "Is there sea?")
        for answer in ("yes", "no")
    }
    for one in presence:
        name = {"Are there ships?": "ship", "Is there sea?": "sea"}[one.question]
        of_image = next(some for some in records if some.image == one.image)
        assert name in (of_image.present if one.answer == "yes" else of_image.absent)
    lists = {one.image.name: one.answer for one in questions if one.question_type == "list"}
    assert len(lists) == 9 and lists["7.png"] == "mobile home, ship" and lists["0.png"] == "ship"
    assert list(object_questions(records[::-1])) != questions  # order follows the records
    assert set(object_questions(records[::-1])) == set(questions)  # the choice does not


def test_scenes_are_asked_about_in_words():
    (question,) = scene_questions([SceneRecord(Path("1.jpg"), "EuroSAT", "val", "PermanentCrop")])
    assert (question.question, question.answer) == ("What is the scene of this image?", "permanent crop")
    assert (question.question_type, question.split) == ("scene", "val")


@pytest.mark.parametrize(("name", "make"), [("eurosat", eurosat), ("ucm-multilabel", ucm_multilabel)])
def test_converted_labels_and_questions_are_read_back(name, make, tmp_path):
    source, out = tmp_path / "source", tmp_path / "data"
    source.mkdir()
    make(source)
    benchmark = BENCHMARKS[name]
    records = list(benchmark.records(source))
    for _ in range(2):  # a second conversion replaces the first
        write_folder(records, source, out, benchmark.name)
    labels = [*read_objects(out), *read_scenes(out)]
    assert len(labels) + len(read_questions(out)) == len(records)
    assert all(one.image.is_relative_to(out / "images" / benchmark.name) for one in labels)
    first = next(one for one in records if not hasattr(one, "question"))
    same = next(one for one in labels if one.image.name == first.image.name)
    assert {**vars(same), "image": None} == {**vars(first), "image": None}
    assert not (out / "captions.jsonl").exists()  # templates are no captions


def test_questions_of_a_folders_own_labels(tmp_path):
    """Beside the questions that people asked, and again without doubling them."""
    (tmp_path / "a.png").write_bytes(b"")
    (tmp_path / "b.png").write_bytes(b"")
    of_harbors = {"dataset": "Harbors", "split": "train"}
    asked = {"image": "a.png", **of_harbors, "question": "How many?", "question_type": "count", "answer": "2"}
    (tmp_path / "vqa.jsonl").write_text(json.dumps(asked) + "\n")
    labels = [
        {"image": "a.png", "present": ["ship"], "absent": []},
        {"image": "b.png", "present": [], "absent": ["ship"]},
    ]
    (tmp_path / "objects.jsonl").write_text("".join(json.dumps({**one, **of_harbors}) + "\n" for one in labels))
    (tmp_path / "scenes.jsonl").write_text(json.dumps({"image": "b.png", **of_harbors, "scene": "SeaLake"}) + "\n")
    for _ in range(2):
        done = CliRunner().invoke(app, ["data", "questions", str(tmp_path)], catch_exceptions=False)
        assert done.exit_code == 0 and "Harbors-labels train, 4 records" in done.output
        found = [(one.image.name, one.dataset, one.question, one.answer) for one in read_questions(tmp_path)]
        assert found == [
            ("a.png", "Harbors", "How many?", "2"),
            ("a.png", "Harbors-labels", "Are there ships?", "yes"),
            ("b.png", "Harbors-labels", "Are there ships?", "no"),
            ("a.png", "Harbors-labels", "Which objects are in this image?", "ship"),
            ("b.png", "Harbors-labels", "What is the scene of this image?", "sea or lake"),
        ]


def test_a_folder_without_labels_is_refused(tmp_path):
    with pytest.raises(RSMoEError, match="has no labels to ask about; add objects.jsonl or scenes.jsonl"):
        add_label_questions(tmp_path)
    assert not list(tmp_path.iterdir())


def test_ucm_labels_have_the_split_of_the_captions(tmp_path):
    ucm_multilabel(tmp_path)
    records = [one for one in BENCHMARKS["ucm-multilabel"].records(tmp_path) if isinstance(one, ObjectRecord)]
    assert {one.image.name: one.split for one in records} == {
        "agricultural00.tif": "train",
        "airplane07.tif": "train",
        "harbor99.tif": "train",
        "harbor98.tif": "test",
    }
    assert records[0].present == ("bare-soil", "trees") and records[0].absent == ("airplane", "ship")


def test_torchgeos_lists_are_followed(tmp_path):
    eurosat(tmp_path)
    for split, names in (("train", "SeaLake_10.jpg"), ("val", "AnnualCrop_77.jpg"), ("test", "AnnualCrop_1.jpg\n")):
        (tmp_path / f"eurosat-{split}.txt").write_text(names)
    records = [one for one in BENCHMARKS["eurosat"].records(tmp_path) if isinstance(one, SceneRecord)]
    assert {one.image.name: one.split for one in records} == {"SeaLake_10.jpg": "train", "AnnualCrop_1.jpg": "test"}
    (tmp_path / "eurosat-val.txt").unlink()
    with pytest.raises(RSMoEError, match="eurosat-val.txt is missing.* give all three lists, or none"):
        list(BENCHMARKS["eurosat"].records(tmp_path))


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("airplane07\t1", "airplane07\t2", r":3: 'airplane07\\t2.*expected an image and 4 times 0 or 1"),
        ("airplane07\t1\t", "airplane07\t", r":3: .*expected an image and 4 times 0 or 1"),
        ("airplane07", "airship07", "no image of UCM-Captions is 'airship07'"),
        ("harbor98", "harbor97", "no image of UCM-Captions is 'harbor97'"),
    ],
)
def test_a_table_that_is_not_as_published(tmp_path, old, new, problem):
    ucm_multilabel(tmp_path)
    file = tmp_path / "LandUse_Multilabeled.txt"
    file.write_text(file.read_text().replace(old, new))
    with pytest.raises(RSMoEError, match=problem):
        list(BENCHMARKS["ucm-multilabel"].records(tmp_path))


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ({"present": "ship"}, "\"present\" is 'ship', expected a list of names; it may be empty"),
        ({"absent": [""]}, '"absent" is .* expected a list of names'),
        ({"absent": ["ship"]}, '"ship" is both present and absent'),
        ({"image": "lost.png"}, "lost.png is missing; copy it there or drop the line"),
        ({"image": "../1.png"}, "leaves the data folder"),
    ],
)
def test_a_line_of_labels_that_is_wrong(tmp_path, line, problem):
    image(tmp_path / "1.png")
    good = {"image": "1.png", "dataset": "Tiny", "split": "train", "present": ["ship"], "absent": []}
    (tmp_path / "objects.jsonl").write_text(json.dumps(good) + "\n" + json.dumps({**good, **line}) + "\n")
    with pytest.raises(RSMoEError, match=rf"objects.jsonl:2: .*{problem}"):
        read_objects(tmp_path, "train")
    assert read_scenes(tmp_path) == []
