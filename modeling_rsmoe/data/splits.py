"""Train, val and test out of images without splits; near duplicates of an image stay in one split.

Two images are near duplicates [our decision] if their gray thumbnails of 16 x 16 correlate by ``NEAR`` or more in one
of the eight turns and mirrorings. That finds what was resized, recompressed, turned, mirrored, brightened or made
gray; crops and other photographs of a place are not found. docs/how-to/data.md has the measurement.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image

from ..errors_rsmoe import RSMoEError
from ..utils.images import read_image
from ..utils.progress import Progress, no_progress
from .records import CaptionRecord, QuestionRecord


R = TypeVar("R", CaptionRecord, QuestionRecord, CaptionRecord | QuestionRecord)

NAMES = ("train", "val", "test")
VAL, TEST, SEED = 0.1, 0.1, 0
NEAR = 0.95
_SIDE = 16  # of a thumbnail, in pixels
_FLAT = 1e-2  # length of a thumbnail of one color
_BLOCK = 1024  # thumbnails that are compared with all others at once
_NAMED = 3  # images in an error


def with_splits(
    records: Sequence[R], val: float = VAL, test: float = TEST, seed: int = SEED, progress: Progress = no_progress
) -> list[R]:
    """The records with new splits, by image: all records of an image, and of its near duplicates, are in one.

    Args:
        records: their own splits do not count.
        val: share of the images, from 0 to 1.
        test: share of the images, from 0 to 1.
        seed: another one draws other splits.
        progress: how many images are read.

    Raises:
        RSMoEError: shares that are none, or images that cannot be read.
    """
    check_shares(val, test)
    groups = near_duplicates(sorted({record.image for record in records}), progress)
    splits = draw_splits(groups, val, test, seed)
    return [replace(record, split=splits[record.image]) for record in records]


def check_shares(val: float, test: float) -> None:
    """Raises RSMoEError unless these can be shares of the images."""
    if not (0 <= val <= 1 and 0 <= test <= 1 and val + test <= 1):
        raise RSMoEError(f"val {val:g} and test {test:g} are no shares of the images; give 0 to 1, at most 1 together")


def draw_splits(groups: Sequence[Sequence[Path]], val: float, test: float, seed: int) -> dict[Path, str]:
    """The split of each image; the same for the same images and seed, whatever their folder and order.

    A split holds no more than its share, rounded, and at least one image where that can be had; what does not fit into
    val and test, such as a large group, is train.
    """
    images = sum(map(len, groups))
    room = {name: max(1, round(images * share)) for name, share in (("test", test), ("val", val)) if share}
    if val + test < 1:
        room["train"] = images
    names = _names([image for group in groups for image in group])

    def place(group: Sequence[Path]) -> bytes:
        return hashlib.sha256(f"{seed}/{min(names[image] for image in group)}".encode()).digest()

    splits: dict[Path, str] = {}
    for group in sorted(groups, key=place):
        name = next((name for name in room if len(group) <= room[name]), max(room, key=lambda name: room[name]))
        room[name] -= len(group)
        splits |= dict.fromkeys(group, name)
    return splits


def near_duplicates(
    images: Sequence[Path],
    progress: Progress = no_progress,
    read: Callable[[Path], Image.Image] = read_image,
) -> list[list[Path]]:
    """The images in groups of near duplicates; most groups hold one. Each image is decoded, so each is checked.

    Args:
        images: their paths.
        progress: how many images are read.
        read: how one is read.

    Raises:
        RSMoEError: images that cannot be read; some are named.
    """
    thumbnails = np.zeros((len(images), _SIDE, _SIDE), np.float32)
    broken: list[RSMoEError] = []
    for number, image in enumerate(images):
        progress("comparing images", number, len(images), "images")
        try:
            thumbnails[number] = _thumbnail(read(image))
        except RSMoEError as error:
            broken.append(error)
    if broken:
        reasons = "; ".join(map(str, broken[:_NAMED])) + ("; ..." if broken[_NAMED:] else "")
        raise RSMoEError(f"{len(broken)} of {len(images)} images cannot be read: {reasons}")
    group = list(range(len(images)))  # the image that leads to the first one of its group

    def first(number: int) -> int:
        while group[number] != number:
            group[number] = number = group[group[number]]
        return number

    for one, other in _near_pairs(thumbnails):
        low, high = sorted((first(one), first(other)))
        group[high] = low
    groups: dict[int, list[Path]] = {}
    for number, image in enumerate(images):
        groups.setdefault(first(number), []).append(image)
    return list(groups.values())


def _thumbnail(image: Image.Image) -> np.ndarray:
    """[16, 16], of mean 0 and length 1; of an image of one color all 0, which is like no other."""
    gray = image.convert("L").convert("F")  # floats: water and deserts have few grays
    values = np.asarray(gray.resize((_SIDE, _SIDE), Image.Resampling.BILINEAR), np.float32)
    values = values - values.mean()
    length = float(np.linalg.norm(values))
    return values / length if length > _FLAT else values * 0


def _near_pairs(thumbnails: np.ndarray) -> Iterator[tuple[int, int]]:
    """Pairs of numbers of near duplicates.

    Most pairs are told apart by the mean of a thumbnail's eight turns, 36 numbers: two means are never further apart
    than the thumbnails in their best turn.
    """
    turned = np.stack([np.rot90(t, k, (1, 2)) for t in (thumbnails, thumbnails[:, :, ::-1]) for k in range(4)])
    corner = np.triu_indices(_SIDE // 2)
    # Each of the 36 stands for 4 or 8 equal pixels.
    means = turned.mean(0)[:, *corner] * np.sqrt(np.where(corner[0] == corner[1], 4, 8))
    squares = (means**2).sum(1)
    flat = thumbnails.reshape(len(thumbnails), -1)
    for start in range(0, len(means), _BLOCK):
        block = slice(start, start + _BLOCK)
        distances = squares[block, None] + squares - 2 * means[block] @ means.T
        ones, others = np.nonzero(distances <= 2 * (1 - NEAR) + 1e-5)
        ones = ones + start
        for one in np.unique(ones):
            candidates = others[(ones == one) & (others > one)]
            alike = turned[:, one].reshape(8, -1) @ flat[candidates].T  # [8, candidates]
            yield from ((int(one), int(other)) for other in candidates[alike.max(0, initial=-1) >= NEAR])


def _names(images: Sequence[Path]) -> dict[Path, str]:
    """The images' paths below the folder that holds all of them: what a copy of the folder does not change."""
    depth = min(map(len, (image.parent.parts for image in images)), default=0)
    while len({image.parts[:depth] for image in images}) > 1:
        depth -= 1
    return {image: "/".join(image.parts[depth:]) for image in images}


def split_line(splits: Iterable[str]) -> str:
    """``train 48, val 6, test 6`` of the splits of images."""
    counts = Counter(splits)
    order = [*(name for name in NAMES if name in counts), *sorted(counts.keys() - set(NAMES))]
    return ", ".join(f"{name} {counts[name]:,}" for name in order)
