"""VRSBench: 29,614 crops of DOTA-v2 and DIOR (512 px) with a long caption and questions each, by GPT-4V and checked.

Source: Li et al., "VRSBench: A Versatile Vision-Language Benchmark Dataset for Remote Sensing Image Understanding",
NeurIPS 2024, arXiv 2406.12384, https://huggingface.co/datasets/xiang709/VRSBench. Splits: train (20,264 images) and
test (9,350 images, 37,409 questions; its files say "val" and "EVAL").

Test is read from the evaluation files ``VRSBench_EVAL_*.json``. Train is read from the annotations of each image, as
the authors' scripts do, because ``VRSBench_train.json`` has no question types and wraps each question in a prompt.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from ...errors_rsmoe import RSMoEError
from ..records import Entry
from .files import Benchmark, Record, Source, caption_record, children, entries, question_record, read_json


def _read(source: Source, splits: Sequence[str]) -> Iterator[Record]:
    if "train" in splits:
        yield from _read_train(source)
    if "test" in splits:
        yield from _read_test(source)


def _read_train(source: Source) -> Iterator[Record]:
    images = source.directory("Images_train/Images_train", "Images_train")
    annotations = source.directory("Annotations_train/Annotations_train", "Annotations_train")
    files = sorted(annotations.glob("*.json"))
    if not files:
        raise RSMoEError(f"{annotations} holds no .json files: unpack Annotations_train.zip there")
    for file in files:
        values = read_json(file, ("image", "caption", "qa_pairs", "question", "answer", "type"))
        if not isinstance(values, dict):
            raise RSMoEError(f"{file}: {type(values).__name__} found, expected an object; is it the published file?")
        entry = Entry(str(file), images, values)
        image = entry.path("image")
        yield caption_record(entry, image, "VRSBench", "train", [entry.text("caption")])
        for pair in children(entry, "qa_pairs"):
            yield _question(pair, image, "train", "answer")


def _read_test(source: Source) -> Iterator[Record]:
    images = source.directory("Images_val/Images_val", "Images_val")
    file = source.file("VRSBench_EVAL_Cap.json")
    for entry in entries(file, read_json(file), images):
        yield caption_record(entry, entry.path("image_id"), "VRSBench", "test", [entry.text("ground_truth")])
    file = source.file("VRSBench_EVAL_vqa.json")
    for entry in entries(file, read_json(file), images):
        yield _question(entry, entry.path("image_id"), "test", "ground_truth")


def _question(entry: Entry, image: Path, split: str, answer: str) -> Record:
    record = question_record(entry, image, "VRSBench", split, ("question", "type", answer))
    # the authors' own script makes the types of the evaluation file of the annotations' in this way
    return replace(record, question_type=record.question_type.lower())


VRSBENCH = Benchmark(
    key="vrsbench",
    name="VRSBench",
    tasks=("captioning", "vqa"),
    splits=("train", "test"),
    url="https://huggingface.co/datasets/xiang709/VRSBench",
    read=_read,
)
