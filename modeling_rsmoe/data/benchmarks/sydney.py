"""Sydney-Captions: 613 images of Sydney (7 classes, 500 px) with five captions each.

Source: Qu et al., "Deep Semantic Understanding of High Resolution Remote Sensing Image", CITS 2016, published with
RSICD at https://github.com/201528014227051/RSICD_optimal. Splits: 497 train, 58 val, 58 test images.
"""

from collections.abc import Iterator, Sequence

from ..records import CaptionRecord
from .files import Benchmark, Source, read_karpathy


def _read(source: Source, splits: Sequence[str]) -> Iterator[CaptionRecord]:
    yield from read_karpathy(source, splits, source.file("dataset.json"), source.directory("imgs", "images"))


SYDNEY = Benchmark(
    key="sydney",
    name="Sydney-Captions",
    tasks=("captioning",),
    splits=("train", "val", "test"),
    url="https://github.com/201528014227051/RSICD_optimal",
    read=_read,
)
