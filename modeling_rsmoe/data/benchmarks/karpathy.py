"""RSICD, UCM-Captions and Sydney-Captions: images with five captions each, in the JSON layout of Karpathy's splits.

- RSICD: 10,921 images of 30 classes; 8,734 train, 1,094 val, 1,093 test. Lu et al., "Exploring Models and Data for
  Remote Sensing Image Caption Generation", TGRS 2017.
- UCM-Captions: the 2,100 images of UC Merced Land Use (21 classes, 256 px); 1,680 train, 210 val, 210 test.
- Sydney-Captions: 613 images of Sydney (7 classes, 500 px); 497 train, 58 val, 58 test. Both: Qu et al., "Deep
  Semantic Understanding of High Resolution Remote Sensing Image", CITS 2016.

All three are published at https://github.com/201528014227051/RSICD_optimal.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from ..records import CaptionRecord, Entry
from .files import Benchmark, Source, Task, caption_record, children, entries, raw, read_json, split_of


URL = "https://github.com/201528014227051/RSICD_optimal"


def karpathy_entries(file: Path, images: Path) -> Iterator[Entry]:
    """The ``images`` of a file in that layout."""
    return entries(file, read_json(file), images, "images")


def _read(source: Source, splits: Sequence[str], file: Path, images: Path) -> Iterator[CaptionRecord]:
    """The fields ``images[].filename, split, sentences[].raw``."""
    for entry in karpathy_entries(file, images):
        split = split_of(entry, source.benchmark.splits)
        if split not in splits:
            continue
        sentences = [raw(sentence) for sentence in children(entry, "sentences")]
        yield caption_record(entry, entry.path("filename"), source.benchmark.name, split, sentences)


def _read_rsicd(source: Source, splits: Sequence[str]) -> Iterator[CaptionRecord]:
    file = source.file("dataset_rsicd.json", "annotations_rsicd/dataset_rsicd.json")
    return _read(source, splits, file, source.directory("RSICD_images"))


def _read_images(source: Source, splits: Sequence[str]) -> Iterator[CaptionRecord]:
    return _read(source, splits, source.file("dataset.json"), source.directory("imgs", "images"))


TASKS: tuple[Task, ...] = ("captioning",)
SPLITS = ("train", "val", "test")
RSICD = Benchmark("rsicd", "RSICD", TASKS, SPLITS, URL, _read_rsicd)
UCM = Benchmark("ucm", "UCM-Captions", TASKS, SPLITS, URL, _read_images)
SYDNEY = Benchmark("sydney", "Sydney-Captions", TASKS, SPLITS, URL, _read_images)
