"""UCM-Captions: the 2,100 images of UC Merced Land Use (21 classes, 256 px) with five captions each.

Source: Qu et al., "Deep Semantic Understanding of High Resolution Remote Sensing Image", CITS 2016, published with
RSICD at https://github.com/201528014227051/RSICD_optimal. Splits: 1,680 train, 210 val, 210 test images.
"""

from collections.abc import Iterator, Sequence

from ..records import CaptionRecord
from .files import Benchmark, Source, read_karpathy


def _read(source: Source, splits: Sequence[str]) -> Iterator[CaptionRecord]:
    yield from read_karpathy(source, splits, source.file("dataset.json"), source.directory("imgs", "images"))


UCM = Benchmark(
    key="ucm",
    name="UCM-Captions",
    tasks=("captioning",),
    splits=("train", "val", "test"),
    url="https://github.com/201528014227051/RSICD_optimal",
    read=_read,
)
