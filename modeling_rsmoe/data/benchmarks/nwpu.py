"""NWPU-Captions: the 31,500 images of NWPU-RESISC45 (45 classes, 256 px) with five captions each.

Source: Cheng et al., "NWPU-Captions Dataset and MLCA-Net for Remote Sensing Image Captioning", TGRS 2022,
https://github.com/HaiyanHuang98/NWPU-Captions. Splits: 25,200 train, 3,150 val, 3,150 test images.

The JSON is keyed by class; an item has ``filename``, ``split`` and the captions ``raw``, ``raw_1`` to ``raw_4``.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from ...errors_rsmoe import RSMoEError
from ..records import CaptionRecord
from .files import Benchmark, Source, caption_record, entries, raw, read_json, split_of


CAPTION_FIELDS = ("raw", "raw_1", "raw_2", "raw_3", "raw_4")
# Annotated, but not among the published images, according to those who unpacked them (docs/how-to/datasets.md).
NOT_PUBLISHED = "airplane_111.jpg"


def _read(source: Source, splits: Sequence[str]) -> Iterator[CaptionRecord]:
    file = source.file("dataset_nwpu.json")
    images = source.directory("NWPU_images", "images")
    by_class = read_json(file)
    if not isinstance(by_class, dict):
        raise RSMoEError(f"{file}: {type(by_class).__name__} found, expected an object keyed by class")
    for name in by_class:
        for entry in entries(file, by_class, images, name):
            split = split_of(entry, source.benchmark.splits)
            if split not in splits:
                continue
            image = replace(entry, values={"filename": f"{name}/{entry.text('filename')}"}).path("filename")
            if not image.is_file() and entry.path("filename").is_file():  # some keep all classes in one folder
                image = entry.path("filename")
            if image.name == NOT_PUBLISHED and not image.is_file():
                continue
            yield caption_record(
                entry, image, source.benchmark.name, split, [raw(entry, field) for field in CAPTION_FIELDS]
            )


NWPU = Benchmark(
    key="nwpu",
    name="NWPU-Captions",
    tasks=("captioning",),
    splits=("train", "val", "test"),
    url="https://github.com/HaiyanHuang98/NWPU-Captions",
    read=_read,
)
