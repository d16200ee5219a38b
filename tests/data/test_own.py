"""One's own captions in every layout that people keep them in, the splits that they get, and what is refused."""

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from modeling_rsmoe.data import rows
from modeling_rsmoe.data.folder import write_parquet
from modeling_rsmoe.data.own import asks_for_caption, read_own, split_in
from modeling_rsmoe.data.records import CaptionRecord
from modeling_rsmoe.errors_rsmoe import RSMoEError

from .published import image, write_json


ALL_TRAIN = "all images are train, and none is left to evaluate on: --val 0.1 --test 0.1 splits them"


def read(source: Path, **options):
    """The records as (name, split, texts), and the notes."""
    scratch = source.with_name(f"{source.name}-scratch")
    scratch.mkdir()
    own = read_own(source, scratch, **options)
    found = []
    for record in own.records:
        texts = record.captions if isinstance(record, CaptionRecord) else (record.question, record.answer)
        found.append((record.image.relative_to(own.folder).as_posix(), record.split, texts))
    return found, own.notes


NAMED = {
    "comma": ("metadata.csv", [
        "file_name,text,split", "a.png,a harbor .,train", "a.png,two ships .,train", "b.png,a pier .,val",
    ]),
    "semicolon": ("metadata.csv", [
        "\ufeffFile_Name;Caption;Split", 'a.png;"a harbor .";train', "a.png;two ships .;train", "b.png;a pier .;dev",
    ]),
    "numbered": ("mine.tsv", [
        "image\tcaption_1\tcaption_2\tsubset", "a.png\ta harbor .\ttwo ships .\ttrain", "b.png\ta pier .\t\tval",
    ]),
    "lists": ("mine.csv", [
        "filename,captions,set", "a.png,\"['a harbor .', 'two ships .']\",train", 'b.png,"[""a pier .""]",val',
    ]),
    "sentences": ("metadata.jsonl", [
        '{"file_name": "a.png", "sentences": [{"raw": "a harbor ."}, {"raw": "two ships ."}], "split": "train"}',
        '{"file_name": "b.png", "text": "a  pier .", "split": "validation"}',
    ]),
}  # fmt: skip


def write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")


# ---- layouts


@pytest.mark.parametrize("kind", NAMED)
def test_tables(tmp_path, kind):
    source, (name, lines) = tmp_path / "own", NAMED[kind]
    image(source / "a.png"), image(source / "b.png")
    write(source / name, "\n".join(lines))
    assert read(source)[0] == [("a.png", "train", ("a harbor .", "two ships .")), ("b.png", "val", ("a pier .",))]


def test_images_are_found_as_people_name_them(tmp_path):
    """In a folder beside the table, with a suffix in capitals or none, with a Windows separator."""
    source = tmp_path / "own"
    for name in ("images/a.JPG", "images/deep/b.Png", "train/c.png", "val/c.png"):
        image(source / name)
    write(source / "labels/metadata.csv", "file_name,text\na.jpg,one\ndeep\\b,two\n")
    write(source / "labels/more/metadata.csv", "file_name,text,split\nc.png,three,val\n")
    found, _ = read(source, only=["val", "test"])
    assert found == [
        ("images/a.JPG", "test", ("one",)),
        ("images/deep/b.Png", "test", ("two",)),
        ("val/c.png", "val", ("three",)),
    ]
    write(source / "labels/more/metadata.csv", "file_name,text\nc.png,three\n")
    with pytest.raises(
        RSMoEError, match=r'metadata.csv:2: file_name "c.png" may be \S+c.png or \S+c.png; write the p'
    ):
        read_own(source, tmp_path)


def test_metadata_in_parquet(tmp_path):
    import pyarrow
    import pyarrow.parquet

    source = tmp_path / "own"
    image(source / "train/a.png")
    table = pyarrow.table({"file_name": ["a.png"] * 2, "question": ["How many?", None], "answer": [2, None]})
    pyarrow.parquet.write_table(
        table.append_column("caption", [[None, "a pier ."]]), source / "train/metadata.parquet"
    )
    assert read(source)[0] == [("train/a.png", "train", ("a pier .",)), ("train/a.png", "train", ("How many?", "2"))]


def test_coco_captions(tmp_path):
    """Several captions an image, images in folders of splits, boxes in files beside them, captions alone."""
    source = tmp_path / "coco"
    for split, name in (("train", "1.jpg"), ("val", "2.jpg")):
        image(source / f"{split}2017" / name)
        annotations = [{"image_id": 7, "caption": text} for text in ("a road .", "a road .", " a  street .")]
        annotations.append({"image_id": 8, "bbox": [0, 0, 1, 1]})
        images = [{"id": 7, "file_name": name}, {"id": 8, "file_name": "without.jpg"}]
        write_json(source / f"annotations/captions_{split}2017.json", {"images": images, "annotations": annotations})
        write(source / f"annotations/instances_{split}2017.json", "[not read")
    captions = ("a road .", "a street .")
    assert read(source)[0] == [("train2017/1.jpg", "train", captions), ("val2017/2.jpg", "val", captions)]


def test_conversations(tmp_path):
    """LLaVA's and ShareGPT's: captions and questions by the wording of the turn; what is about no image is counted."""
    source = tmp_path / "llava"
    image(source / "images/a.png"), image(source / "images/b.png")
    turns = [
        ("system", "You help."),
        ("human", "<image>\nShare a concise interpretation of the image provided."),
        ("gpt", "A harbor."),
        ("human", "How many ships?\nAnswer the question using a single word or phrase."),
        ("gpt", "2"),
    ]
    conversation = [{"from": who, "value": text} for who, text in turns]
    content = [{"type": "image"}, {"type": "text", "text": "Describe the image."}]
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": "A pier."}]
    entries = [
        {"id": "0", "conversations": conversation[3:]},
        {"id": "1", "image": "a.png", "conversations": conversation},
        {"images": ["images/b.png"], "messages": messages},
        {"images": ["images/a.png", "images/b.png"], "messages": messages},
    ]
    write_json(source / "llava_train.json", entries)
    expected = [
        ("images/a.png", "train", ("A harbor.",)),
        ("images/b.png", "train", ("A pier.",)),
        ("images/a.png", "train", ("How many ships?", "2")),
    ]
    assert read(source) == (expected, ["left out: 2 rows about no image, or several", ALL_TRAIN])


@pytest.mark.parametrize(
    ("instruction", "caption"),
    [
        ("Describe the image.", True),
        ("Render a clear and concise summary of the photo.", True),
        ("Explain the various aspects of the image before you.", True),
        ("Summarize the visual content of the image.", True),
        ("", True),
        ("Describe the colors of the planes in the image.", False),
        ("What is in the image?", False),
        ("Is there a view of the sea?", False),
    ],
)
def test_which_turn_asks_for_a_caption(instruction, caption):
    assert asks_for_caption(instruction) is caption


def test_folders_of_datasets(tmp_path):
    """As `save_to_disk` writes them and as Parquet; the images lie inside, one that several questions ask of once."""
    import datasets

    pixels = [Image.open(image(tmp_path / name)) for name in ("a.png", "b.png")]
    columns = {"image": [pixels[0], pixels[1], pixels[0]], "question": ["One?", "Two?", "Three?"]}
    text = datasets.Value("string")
    features = datasets.Features({"image": datasets.Image(), "question": text, "answer": text})
    table = datasets.Dataset.from_dict({**columns, "answer": ["yes", "no", "yes"]}, features=features)
    table.save_to_disk(tmp_path / "plain")
    datasets.DatasetDict({"train": table, "validation": table.select([1])}).save_to_disk(tmp_path / "splits")
    write_parquet(datasets.DatasetDict({"test": table}), tmp_path / "parquet")
    found, notes = read(tmp_path / "plain", val=0, test=0.5)
    assert sorted(texts for _, _, texts in found) == [("One?", "yes"), ("Three?", "yes"), ("Two?", "no")]
    assert found[0][0] == found[2][0] != found[1][0] and found[0][1] == found[2][1] != found[1][1]
    assert notes[0].startswith("splits made by image: train 1, test 1 (--val 0 --test 0.5 --seed 0)")
    found, notes = read(tmp_path / "splits")
    assert [split for _, split, _ in found] == ["train"] * 3 + ["val"]
    assert notes[0].startswith("near duplicates in several splits: 1 group")
    assert {split for _, split, _ in read(tmp_path / "parquet")[0]} == {"test"}
    saved = next((tmp_path / "splits-scratch").iterdir())
    assert Image.open(saved).tobytes() in [one.tobytes() for one in pixels]


# ---- splits


def own_images(source: Path, count: int, split: str = "") -> None:
    with (image(source / "0.png").with_name("captions.csv")).open("w", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(["image", "caption", *(["split"] if split else [])])
        for number in range(count):
            image(source / f"{number}.png")
            table.writerow([f"{number}.png", f"image {number}", *([split] if split else [])])


def test_splits_are_made_by_image_and_stay(tmp_path):
    own_images(tmp_path / "own", 40)
    found, notes = read(tmp_path / "own")
    splits = [split for _, split, _ in found]
    assert (splits.count("train"), splits.count("val"), splits.count("test")) == (32, 4, 4)
    assert notes == ["splits made by image: train 32, val 4, test 4 (--val 0.1 --test 0.1 --seed 0); "
                     "near duplicates that stay together: 0 images"]  # fmt: skip
    (tmp_path / "own").rename(tmp_path / "elsewhere")
    assert read(tmp_path / "elsewhere")[0] == found
    (tmp_path / "elsewhere-scratch").rmdir()
    assert read(tmp_path / "elsewhere", seed=1)[0] != found
    (tmp_path / "elsewhere-scratch").rmdir()
    assert {split for _, split, _ in read(tmp_path / "elsewhere", val=0, test=1)[0]} == {"test"}
    with pytest.raises(RSMoEError, match=r"val 0.6 and test 0.6 are no shares"):
        read_own(tmp_path / "elsewhere", tmp_path, val=0.6, test=0.6)


def test_splits_that_are_there_are_kept(tmp_path):
    own_images(tmp_path / "own", 4, split="val")
    assert {split for _, split, _ in read(tmp_path / "own")[0]} == {"val"}
    with pytest.raises(RSMoEError, match=r"own has the splits val; --val, --test and --seed are for images without"):
        read_own(tmp_path / "own", tmp_path, val=0.2)
    own_images(tmp_path / "train", 4, split="train")
    assert {split for _, split, _ in read(tmp_path / "train", val=0.25, test=0)[0]} == {"train", "val"}
    (tmp_path / "train-scratch").rmdir()
    found, notes = read(tmp_path / "train")
    assert {split for _, split, _ in found} == {"train"}
    assert notes == [ALL_TRAIN]


def test_a_name_says_its_split():
    assert [split_in(name) for name in ("captions_val2017", "train-00000-of-00001", "Dev", "brain", None)] == [
        "val",
        "train",
        "val",
        "",
        "",
    ]


# ---- what is refused


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "image,caption\n../a.png,text\n", r'a.csv:2: image "../a.png" leaves'),
        ("a.csv", "image,caption\n/etc/passwd,text\n", r'image "/etc/passwd" is an absolute path'),
        ("a.csv", "image,caption\n..\\..\\a.png,text\n", r"leaves the data folder"),
        ("a.csv", "image,caption\na.png,a road, and a house\n", r"a.csv:2: 3 cells in 2 columns; put"),
        ("a.csv", 'image,caption\na.png,"a road\n', r"a.csv:2: no row of CSV"),
        ("a.csv", "image,caption\nb.png,text\n", r"1 of 1 images are missing: \S+b.png; copy them there or drop"),
        ("a.csv", "image,caption\nbad.png,text\n", r"1 of 1 images cannot be read: \S+bad.png"),
        ("a.csv", "image,caption\na.png,\n", r"no captions or questions: left out: 1 row without a text"),
        ("a.csv", "\ufeff", r"no captions or questions"),
        ("a.csv", "image,caption\n.,text\n", r'a.csv:2: image "." is a folder; write the name of an image'),
        ("a.csv", "id,label\n1,2\n", r"a.csv has no columns of images and texts \(found: id, label\)"),
        ("a.json", "{", r"a.json is not UTF-8 JSON"),
        ("a.json", "[" * 100_000, r"a.json is not UTF-8 JSON \(it is nested too deep\)"),
        ("a.json", "3", r"int found, expected a list of objects"),
        ("a.json", '{"images": [{"file_name": "a.png"}], "annotations": []}', r'images\[0\]: field "id" is missing'),
        ("a.json", '{"images": [], "annotations": [{"image_id": [], "caption": "a"}]}', r"the id of an image"),
        ("a.json", '{"images": [{"id": []}], "annotations": []}', r'images\[0\]: "id" is \[\], expected the id of an'),
        ("a.json", '[{"image": "a.png", "conversations": 3}]', r"\[0\]: \"conversations\" is no list of turns"),
        ("a.json", '[{"image": "a.png", "messages": [{"role": "gpt", "content": "A"}]}]', r"from human or user"),
        ("a.json", '[{"image": "a.png", "caption": {"x": [1]}}]', r"no captions or questions"),
        ("a.json", '[{"image": "a.png", "caption": [[1]]}]', r'"caption" holds \[1\], expected text'),
        ("a.json", '[{"image": 3, "caption": "a"}]', r'"image" is 3, expected a non-empty string'),
        ("a.json", '[{"image": "a.png", "question": "How many?"}]', r'"answer" is None, expected a non-empty string'),
        ("a.parquet", "PAR1", r"a.parquet cannot be read"),
        ("a.arrow", "no arrow", r"a.arrow cannot be read"),
        ("notes.txt", "", r"no captions or questions: no table"),
    ],
)  # fmt: skip
def test_bad_input_is_named(tmp_path, name, text, message):
    image(tmp_path / "a.png")
    (tmp_path / "bad.png").write_bytes(b"no image")
    (tmp_path / name).write_text(text)
    with pytest.raises(RSMoEError, match=message):
        read_own(tmp_path, tmp_path / "scratch")


@pytest.mark.parametrize("name", ["..", "...", "\\", "\u5b57" * 120 + ".png"])
def test_names_inside_a_table_stay_in_the_scratch_folder(tmp_path, name):
    import pyarrow
    import pyarrow.parquet

    content = image(tmp_path / "in/a.png").read_bytes()
    table = pyarrow.table({"image": [{"bytes": content, "path": name}], "caption": ["a harbor ."]})
    pyarrow.parquet.write_table(table, tmp_path / "in/table.parquet")
    found, _ = read(tmp_path / "in")
    assert len(found) == 1 and {path.name for path in tmp_path.iterdir()} == {"in", "in-scratch"}


def test_a_date_out_of_range(tmp_path):
    import pyarrow
    import pyarrow.parquet

    dates = pyarrow.array([2**62], pyarrow.timestamp("us"))
    pyarrow.parquet.write_table(pyarrow.table({"image": ["a.png"], "date": dates}), tmp_path / "a.parquet")
    with pytest.raises(RSMoEError, match=r"a.parquet cannot be read \(.*\); save it again"):
        read_own(tmp_path, tmp_path)


def test_text_that_is_not_utf8(tmp_path):
    (tmp_path / "a.csv").write_bytes("image,caption\na.png,Straße\n".encode("latin-1"))
    with pytest.raises(RSMoEError, match=r"a.csv is not UTF-8 text .* save it as CSV in UTF-8"):
        read_own(tmp_path, tmp_path)


def test_bombs(tmp_path, monkeypatch):
    """Of pixels in a file, of pixels in a table, and of bytes in a table."""
    import pyarrow
    import pyarrow.parquet

    Image.fromarray(np.zeros((64, 64), np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "a.csv").write_text("image,caption\na.png,text\n")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(RSMoEError, match="over Pillow's limit against decompression bombs"):
        read_own(tmp_path, tmp_path)
    embedded = {"bytes": (tmp_path / "a.png").read_bytes(), "path": "../../../a.png"}
    table = pyarrow.table({"image": [embedded], "caption": ["text"]})
    (tmp_path / "in").mkdir()
    pyarrow.parquet.write_table(table, tmp_path / "in/a.parquet")
    (tmp_path / "scratch").mkdir()
    with pytest.raises(RSMoEError, match=r"scratch/a.png is over Pillow's limit"):
        read_own(tmp_path / "in", tmp_path / "scratch")
    monkeypatch.setattr(rows, "_MAX_GROUP_BYTES", 100)
    with pytest.raises(RSMoEError, match=r"bytes in one group of rows, more than 100; write smaller groups"):
        read_own(tmp_path / "in", tmp_path / "scratch")
