"""RSICD: 10,921 aerial images of 30 classes with five captions each, one of the standard captioning benchmarks.

Source: Lu et al., "Exploring Models and Data for Remote Sensing Image Caption Generation", TGRS 2017,
https://github.com/201528014227051/RSICD_optimal. Splits: 8,734 train, 1,094 val, 1,093 test images.
"""

from collections.abc import Iterator, Sequence

from ..records import CaptionRecord
from .files import Benchmark, Source, read_karpathy


def _read(source: Source, splits: Sequence[str]) -> Iterator[CaptionRecord]:
    file = source.file("dataset_rsicd.json", "annotations_rsicd/dataset_rsicd.json")
    yield from read_karpathy(source, splits, file, source.directory("RSICD_images"))


RSICD = Benchmark(
    key="rsicd",
    name="RSICD",
    tasks=("captioning",),
    splits=("train", "val", "test"),
    url="https://github.com/201528014227051/RSICD_optimal",
    read=_read,
)
