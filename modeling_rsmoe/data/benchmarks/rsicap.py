"""RSICap (2,585 DOTA crops with one long human caption each, for training) and RSIEval (100 more, with questions).

Source: Hu et al., "RSGPT: A Remote Sensing Vision Language Model and Benchmark", 2023, arXiv 2307.15266,
https://github.com/Lavender105/RSGPT. RSIEval is test only: 100 captions and 936 questions of 10 types.
"""

from collections.abc import Iterator, Sequence

from ..records import CaptionRecord
from .files import (
    Benchmark,
    Record,
    Source,
    caption_record,
    children,
    entries,
    question_record,
    read_json,
)


URL = "https://github.com/Lavender105/RSGPT"


def _read_rsicap(source: Source, splits: Sequence[str]) -> Iterator[CaptionRecord]:
    file, images = source.file("captions.json"), source.directory("images")
    for entry in entries(file, read_json(file), images, "annotations"):
        # "text_input" is one of four instructions that ask for a description
        yield caption_record(entry, entry.path("filename"), "RSICap", "train", [entry.text("text_output")])


def _read_rsieval(source: Source, splits: Sequence[str]) -> Iterator[Record]:
    file, images = source.file("annotations.json"), source.directory("images")
    for entry in entries(file, read_json(file), images, "annotations"):
        image = entry.path("filename")
        yield caption_record(entry, image, "RSIEval", "test", [entry.text("caption")])
        for pair in children(entry, "qa_pairs"):
            yield question_record(pair, image, "RSIEval", "test", ("question", "type", "answer"))


RSICAP = Benchmark(key="rsicap", name="RSICap", tasks=("captioning",), splits=("train",), url=URL, read=_read_rsicap)
RSIEVAL = Benchmark(
    key="rsieval", name="RSIEval", tasks=("captioning", "vqa"), splits=("test",), url=URL, read=_read_rsieval
)
