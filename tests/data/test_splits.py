"""Splits by image, with near duplicates together."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from modeling_rsmoe.data.records import CaptionRecord, QuestionRecord
from modeling_rsmoe.data.splits import draw_splits, near_duplicates, with_splits
from modeling_rsmoe.errors_rsmoe import RSMoEError


def scene(seed: int) -> Image.Image:
    """Patches of colors, as fields have."""
    pixels = np.random.default_rng(seed).integers(0, 256, (12, 12, 3), np.uint8)
    return Image.fromarray(pixels).resize((192, 192), Image.Resampling.BICUBIC)


COPIES = {
    "smaller.png": lambda image: image.resize((80, 80), Image.Resampling.BICUBIC),
    "again.jpg": lambda image: image,  # recompressed
    "turned.jpg": lambda image: image.transpose(Image.Transpose.ROTATE_90),
    "mirrored.webp": lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).resize((150, 150)),
    "brighter.png": lambda image: ImageEnhance.Brightness(image).enhance(1.2),
    "gray.png": lambda image: image.convert("L"),
}


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    """Twelve different images, and copies of the first."""
    for number in range(12):
        scene(number).save(tmp_path / f"{number}.png")
    for name, change in COPIES.items():
        change(scene(0)).save(tmp_path / name, quality=40)
    return sorted(tmp_path.iterdir())


def test_near_duplicates(images, tmp_path):
    groups = {tuple(sorted(image.name for image in group)) for group in near_duplicates(images)}
    assert groups == {tuple(sorted(["0.png", *COPIES])), *((f"{number}.png",) for number in range(1, 12))}


def test_images_of_one_color_are_not_taken_for_each_other(tmp_path):
    for name, color in (("black", 0), ("white", 255)):
        Image.new("RGB", (64, 64), (color,) * 3).save(tmp_path / f"{name}.png")
    assert len(near_duplicates(sorted(tmp_path.iterdir()))) == 2


def test_all_records_of_an_image_and_its_copies_are_in_one_split(images, tmp_path):
    records = [CaptionRecord(image, "Own", "", ("text",)) for image in images]
    records += [QuestionRecord(image, "Own", "", "One?", "other", "yes") for image in images]
    made = with_splits(records, 0.1, 0.1, 3)
    splits = {record.image.name: record.split for record in made}
    assert all(splits[record.image.name] == record.split for record in made)
    assert len({splits[name] for name in ("0.png", *COPIES)}) == 1
    assert sorted(splits.values()).count("val") == sorted(splits.values()).count("test") == 2  # of 18 images
    assert {record.image: record.split for record in with_splits(records[::-1], 0.1, 0.1, 3)} == {
        record.image: record.split for record in made
    }


@pytest.mark.parametrize(
    ("count", "val", "test", "expected"),
    [(3, 0.1, 0.1, (1, 1, 1)), (10, 0.1, 0.1, (8, 1, 1)), (60, 0.1, 0.2, (42, 6, 12)), (5, 0, 1, (0, 0, 5))],
)
def test_sizes(count, val, test, expected):
    groups = [[Path(f"/a/{number}.png")] for number in range(count)]
    splits = list(draw_splits(groups, val, test, 0).values())
    assert tuple(map(splits.count, ("train", "val", "test"))) == expected


def test_every_broken_image_is_counted(images, tmp_path):
    for number in range(5):
        (tmp_path / f"{number}.png").write_bytes(b"no image")
    with pytest.raises(RSMoEError, match=r"5 of 18 images cannot be read: \S+0.png .*; \.\.\."):
        near_duplicates(images)
