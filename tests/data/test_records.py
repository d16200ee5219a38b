"""Reading a data folder: what comes back, and every way in which a folder can be wrong."""

import json
from pathlib import Path

import pytest

from modeling_rsmoe.data.records import CaptionRecord, QuestionRecord, read_captions, read_questions
from modeling_rsmoe.errors_rsmoe import RSMoEError


CAPTION = {"image": "images/a.png", "dataset": "RSICD", "split": "train", "captions": ["a  pond .", "a pond ."]}
QUESTION = {
    "image": "images/a.png",
    "dataset": "RSVQA-LR",
    "split": "val",
    "question": "Is there a pond?",
    "question_type": "presence",
    "answer": "yes",
    "annotation": "more fields are fine",
}


def write(folder: Path, name: str, *lines: object) -> None:
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for image in ("a.png", "b.png"):
        (folder / "images" / image).write_bytes(b"never opened")
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    (folder / name).write_text("\n".join(texts) + "\n", encoding="utf-8")


def test_captions_come_back_raw_with_absolute_images(tmp_path, monkeypatch):
    write(tmp_path, "captions.jsonl", CAPTION, "", {**CAPTION, "image": "images/b.png", "split": "val"})
    expected = CaptionRecord(tmp_path / "images/a.png", "RSICD", "train", ("a  pond .", "a pond ."))
    assert read_captions(tmp_path, "train") == [expected]
    assert [record.split for record in read_captions(tmp_path)] == ["train", "val"]
    monkeypatch.chdir(tmp_path)
    assert read_captions(".", "train")[0].image.is_absolute()


def test_questions_come_back(tmp_path):
    write(tmp_path, "vqa.jsonl", QUESTION, {**QUESTION, "dataset": "RSVQA-HR"})
    expected = QuestionRecord(tmp_path / "images/a.png", "RSVQA-LR", "val", "Is there a pond?", "presence", "yes")
    assert read_questions(tmp_path, "val", ["RSVQA-LR"]) == [expected]
    (tmp_path / "vqa.jsonl").rename(tmp_path / "more.jsonl")
    assert len(read_questions(tmp_path, name="more.jsonl")) == 2


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"image": ', r"captions\.jsonl:2: not a line of UTF-8 JSON"),
        ("[1]", r"captions\.jsonl:2: list found, expected one JSON object"),
        ({"image": "images/a.png"}, r':2: field "captions" is missing \(found: image\)'),
        ({**CAPTION, "captions": []}, r':2: "captions" is \[\]'),
        ({**CAPTION, "captions": "a pond"}, r":2: \"captions\" is 'a pond'"),
        ({**CAPTION, "captions": ["a pond", " "]}, r'"captions" is'),
        ({**CAPTION, "split": 3}, r':2: "split" is 3, expected a non-empty string'),
        ({**CAPTION, "image": "/etc/passwd"}, r'image "/etc/passwd" is an absolute path'),
        ({**CAPTION, "image": "C:\\a.png"}, r"is an absolute path"),
        ({**CAPTION, "image": "images/../../a.png"}, r'image "images/\.\./\.\./a\.png" leaves the data folder'),
        ({**CAPTION, "image": "images\\..\\..\\a.png"}, r"leaves the data folder"),
        ({**CAPTION, "image": "images/c.png"}, r":2: image .*images/c\.png is missing; copy it"),
    ],
)
def test_a_wrong_line_is_named(tmp_path, line, message):
    write(tmp_path, "captions.jsonl", CAPTION, line)
    with pytest.raises(RSMoEError, match=message):
        read_captions(tmp_path)


def test_a_wrong_answer_is_named(tmp_path):
    write(tmp_path, "vqa.jsonl", {**QUESTION, "answer": 4})
    with pytest.raises(RSMoEError, match=r'vqa\.jsonl:1: "answer" is 4'):
        read_questions(tmp_path)


def test_bytes_that_are_no_text_are_named(tmp_path):
    (tmp_path / "captions.jsonl").write_bytes(b"\xff\xfe\n")
    with pytest.raises(RSMoEError, match=r"captions\.jsonl:1: not a line of UTF-8 JSON"):
        read_captions(tmp_path)


def test_missing_and_empty_places(tmp_path):
    with pytest.raises(RSMoEError, match="nowhere does not exist"):
        read_captions(tmp_path / "nowhere")
    (tmp_path / "other.jsonl").write_text("")
    with pytest.raises(RSMoEError, match=r"captions\.jsonl is missing \(.jsonl files there: other\.jsonl\)"):
        read_captions(tmp_path)
    (tmp_path / "captions.jsonl").write_text("\n")
    with pytest.raises(RSMoEError, match="holds no records"):
        read_captions(tmp_path)


def test_unknown_split_and_dataset_list_the_known(tmp_path):
    write(tmp_path, "captions.jsonl", CAPTION, {**CAPTION, "split": "val", "dataset": "UCM-Captions"})
    with pytest.raises(RSMoEError, match='unknown split "dev" .*known: train, val'):
        read_captions(tmp_path, "dev")
    with pytest.raises(RSMoEError, match='unknown dataset "UCM" .*known: RSICD, UCM-Captions'):
        read_captions(tmp_path, datasets=["RSICD", "UCM"])
    with pytest.raises(RSMoEError, match='unknown split "val" .*known: train'):
        read_captions(tmp_path, "val", datasets=["RSICD"])


def test_images_of_lines_left_out_may_be_missing(tmp_path):
    write(tmp_path, "captions.jsonl", CAPTION, {**CAPTION, "image": "images/c.png", "split": "val"})
    assert len(read_captions(tmp_path, "train")) == 1
