"""Which images a collection has, and what their rows are called."""

import json
from pathlib import Path

import pytest

from modeling_rsmoe.collection.images import CollectionImage, find_images, is_collection
from modeling_rsmoe.errors_rsmoe import RSMoEError

from .conftest import NAMES


def test_a_folder(tiles: Path) -> None:
    images = find_images([str(tiles)])
    assert [image.name for image in images] == NAMES
    assert all(image.path == str(tiles / image.name) for image in images)


def test_lists(tiles: Path) -> None:
    """Paths are relative to the list; what stands twice has two rows."""
    wanted = ["b/1.png", "a.png", str(tiles / "c.tif"), "https://host/x.png", "a.png"]
    paths = [str(tiles / "b/1.png"), str(tiles / "a.png"), wanted[2], wanted[3], str(tiles / "a.png")]
    texts, objects = tiles / "list.txt", tiles / "list.jsonl"
    texts.write_text("\n  ".join([wanted[0], "", *wanted[1:]]))
    objects.write_text("".join(json.dumps({"image": name, "label": 1}) + "\n" for name in wanted))
    for file in (texts, objects):
        assert find_images([str(file)]) == [CollectionImage(*pair) for pair in zip(wanted, paths, strict=True)]
        file.unlink()


def test_images_by_name(tiles: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tiles)
    assert find_images(["a.png", "http://host/b.txt"]) == [
        CollectionImage("a.png", str(tiles / "a.png")),
        CollectionImage("http://host/b.txt", "http://host/b.txt"),
    ]
    assert (
        is_collection("b")
        and is_collection("x.jsonl")
        and not is_collection("a.png")
        and not is_collection("http://h/b.txt")
    )


def test_what_is_no_collection(tiles: Path, tmp_path: Path) -> None:
    (tmp_path / "lost.txt").write_text("x.png\ny.png\n")
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "other.jsonl").write_text('{"image": "a.png"}\n{"file": "b.png"}\n')
    (tmp_path / "list.jsonl").write_text("[1]\n")
    for where, message in (
        ([tmp_path], r"holds no images \(ending in .bmp"),
        ([tmp_path / "empty.txt"], r"holds no images \(on any line"),
        ([tmp_path / "none.txt"], "there is no file .*none.txt"),
        ([tmp_path / "lost.txt"], "none of the first 2 files of .* exists, such as .*x.png: relative paths"),
        ([tmp_path / "other.jsonl"], r"other.jsonl:2: no image; a line is"),
        ([tmp_path / "list.jsonl"], r"list.jsonl:1: no image"),
        ([tiles, tiles / "a.png"], "stands beside other images"),
    ):
        with pytest.raises(RSMoEError, match=message):
            find_images([str(path) for path in where])


def test_linked_folders_are_followed_and_loops_are_not(tiles: Path, tmp_path: Path) -> None:
    (tmp_path / "root" / "deep").mkdir(parents=True)
    (tmp_path / "root" / "link").symlink_to(tiles)
    (tmp_path / "root" / "deep" / "up").symlink_to(tmp_path / "root")
    names = [image.name for image in find_images([str(tmp_path / "root")])]
    assert names and all(name.startswith("link/") for name in names)
