"""Predictions for the records of a data folder, batch by batch into a JSONL that a later run continues.

The model is an `inference.Predictor`; it may also be given no image. In float32 neither the batch size nor an
interruption changes what is written.
"""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.records import CaptionRecord, QuestionRecord
from ..inference.resume import KeyedLog, read_log
from ..utils.progress import Progress, no_progress
from ..utils.provenance import peak_memory


if TYPE_CHECKING:
    from PIL import Image

    from ..inference import Predictor

Record = CaptionRecord | QuestionRecord
Key = tuple[str, str]  # image relative to the data folder, question ("" for a caption)
Line = dict[str, Any]  # of a predictions file


def instruction_of(record: Record, in_detail: bool = False) -> str:
    """What a system is asked about a record.

    Args:
        record: a captioned image, or a question.
        in_detail: whether captions are paragraphs.
    """
    from ..prompting_rsmoe import DEFAULT_INSTRUCTION, DETAIL_INSTRUCTION, question_instruction

    if isinstance(record, QuestionRecord):
        return question_instruction(record.question)
    return DETAIL_INSTRUCTION if in_detail else DEFAULT_INSTRUCTION


def text_field(record: Record) -> str:
    """The name of the predicted text in a prediction's line."""
    return "answer" if isinstance(record, QuestionRecord) else "caption"


def key_of(record: Record, folder: Path) -> Key:
    """What identifies a record's prediction.

    Args:
        record: of the data folder.
        folder: which the image's name is relative to.
    """
    question = record.question if isinstance(record, QuestionRecord) else ""
    return record.image.relative_to(folder.absolute()).as_posix(), question


def record_fields(record: Record, folder: Path) -> Line:
    """What of a prediction's line says which record it is of.

    Args:
        record: of the data folder.
        folder: which the image's name is relative to.
    """
    image, question = key_of(record, folder)
    fields = {"image": image, "dataset": record.dataset, "split": record.split}
    return fields | ({"question": question} if question else {})


def key_of_line(line: Any) -> Key:
    """The key of a prediction's line.

    Args:
        line: of a predictions file.

    Raises:
        ValueError: it is no prediction.
    """
    names = ("image", "question", "answer") if isinstance(line, dict) and "question" in line else ("image", "caption")
    if not isinstance(line, dict) or not all(isinstance(line.get(name), str) for name in names):
        raise ValueError("a prediction is an object with image and caption, or with image, question and answer")
    return line["image"], line.get("question", "")


def read_predictions(file: Path) -> dict[Key, Line]:
    """The lines of a predictions file, by key, whoever wrote it.

    Args:
        file: JSONL.

    Raises:
        RSMoEError: there is no such file, or a line of it is no prediction.
    """
    return read_log(file, key_of_line)[1]


def predict(
    predictor: "Predictor",
    records: Sequence[Record],
    folder: Path,
    log: KeyedLog,
    batch_size: int,
    sees_image: bool = True,
    in_detail: bool = False,
    progress: Progress = no_progress,
) -> None:
    """Predict what the log lacks, writing each batch as it comes.

    A line has `image, dataset, split`, `caption` or `question, answer`; of the experts that wrote `router_prompts` and
    `expert_texts`, by name; of a paragraph its `sentences` with their writers; `score` of the reranker where it chose
    the text (as the lines of a scene have it); `confidence` and `expert_confidences` where there are any; `seconds` of
    the record's share of its batch and `peak_memory` of the process in bytes.

    Args:
        predictor: of a checkpoint.
        records: whose predictions the log shall hold.
        folder: the data folder, which image names are relative to.
        log: with `key_of_line` as its `key_of`.
        batch_size: images, or questions, in one batch.
        sees_image: whether it is given the image, or else a gray one.
        in_detail: whether captions are paragraphs.
        progress: called after each batch.
    """
    questions = any(isinstance(record, QuestionRecord) for record in records)
    message, unit = ("answering questions", "questions") if questions else ("captioning images", "images")
    groups = _groups(records, folder, log, sees_image)
    total = len({key_of(record, folder) for record in records})
    done = total - sum(map(len, groups))
    progress(message, done, total, unit)
    for start in range(0, len(groups), batch_size):
        batch = groups[start : start + batch_size]
        log.add(_lines(predictor, batch, folder, sees_image, in_detail))
        done += sum(map(len, batch))
        progress(message, done, total, unit)


def _groups(records: Sequence[Record], folder: Path, log: KeyedLog, sees_image: bool) -> list[list[Record]]:
    """The records without a prediction; those that are the same to the model stand in one group."""
    missing = {key: record for record in records if (key := key_of(record, folder)) not in log.lines}
    groups: dict[tuple[Path | None, str], list[Record]] = {}
    for record in missing.values():
        groups.setdefault((record.image if sees_image else None, instruction_of(record)), []).append(record)
    return list(groups.values())


def _lines(
    predictor: "Predictor", groups: Sequence[list[Record]], folder: Path, sees_image: bool, in_detail: bool
) -> Iterator[Line]:
    began = time.perf_counter()
    firsts = [group[0] for group in groups]
    gray = None if sees_image else _gray_image(predictor)
    image_embeds = predictor.encode([gray or record.image for record in firsts])
    instructions = [instruction_of(record, in_detail) for record in firsts]
    predictions = predictor.predict(None, instructions, image_embeds)
    seconds = (time.perf_counter() - began) / sum(map(len, groups))
    cost = {"seconds": round(seconds, 4), "peak_memory": peak_memory()}
    for group, prediction in zip(groups, predictions, strict=True):
        texts = prediction.record()
        text = texts.pop("text")
        if "reranker" in prediction.scores:
            texts["score"] = round(prediction.scores["reranker"], 4)
        for record in group:
            yield {**record_fields(record, folder), text_field(record): text, **texts, **cost}


def _gray_image(predictor: "Predictor") -> "Image.Image":
    """No image: the mean color of the image encoder's training images, which normalizes to zero."""
    from PIL import Image

    mean = predictor.processor.image_processor.image_mean
    return Image.new("RGB", (224, 224), tuple(round(255 * channel) for channel in mean))
