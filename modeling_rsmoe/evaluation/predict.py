"""What a system says about each image or question, batch by batch, into a JSONL that a later run goes on with.

A system is the full model, its base LM alone or one of its experts alone; each can also be run without seeing the
image. In float32 neither the batch size nor an interruption changes what is written.
"""

import copy
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.records import CaptionRecord, QuestionRecord
from ..errors_rsmoe import RSMoEError
from ..utils.provenance import peak_memory


if TYPE_CHECKING:
    from PIL import Image

    from ..modeling_rsmoe import RSMoEForConditionalGeneration
    from ..processing_rsmoe import RSMoEProcessor

Record = CaptionRecord | QuestionRecord
Key = tuple[str, str]  # image relative to the data folder, question ("" for a caption)
EXPERT = "experts:"
FULL = "full"


@dataclass(frozen=True)
class System:
    """Who speaks: `full`, `full:NAME,NAME` (the whole path with some of the experts), `base` (the base LM alone) or
    `experts:NAME`, with or without seeing the image."""

    reader: str = FULL
    sees_image: bool = True

    @property
    def name(self) -> str:
        return self.reader if self.sees_image else f"{self.reader}, no image"


class Predictor:
    """Runs one system over batches of records.

    Args:
        model, processor: of one checkpoint.
        system: who speaks.
        generation: keyword arguments of `generate` (`num_beams`, `router_mode`, ...).

    Raises:
        RSMoEError: the model has no such expert.
    """

    def __init__(
        self,
        model: "RSMoEForConditionalGeneration",
        processor: "RSMoEProcessor",
        system: System,
        generation: Mapping[str, Any],
    ):
        known = [FULL, "base", *(EXPERT + name for name in processor.experts)]
        some = _some_experts(system.reader, processor.experts)
        if system.reader not in known and not some:
            known.insert(1, f"{FULL}:NAME,NAME")
            raise RSMoEError(f'there is no "{system.reader}" to evaluate; known: {", ".join(known)}')
        self.model, self.processor, self.system, self.generation = model, processor, system, dict(generation)
        if system.reader.startswith(EXPERT):  # rows for this expert alone; its part is the whole text
            self.processor = copy.copy(processor)
            self.processor.experts = [system.reader.removeprefix(EXPERT)]
            self.generation["fusion"] = "concat"
        if some:
            self.processor = copy.copy(processor)
            self.processor.experts = some

    def __call__(self, records: Sequence[Record]) -> list[dict[str, Any]]:
        """For each record `text`, and of the experts that spoke `router_prompts` and `parts`, by their names."""
        import torch

        with torch.inference_mode():
            inputs = self._inputs(records)
            if self.system.reader == "base":
                new = self.model.generate(**inputs, **self.generation)[:, inputs["input_ids"].shape[1] :]
                texts = self.processor.batch_decode(new, skip_special_tokens=True)
                return [{"text": text.strip()} for text in texts]
            outputs = self.model.generate(**inputs, **self.generation, return_dict_in_generate=True)
            return self.processor.post_process_generation(outputs)

    def _inputs(self, records: Sequence[Record]) -> dict[str, Any]:
        """Every image goes through the ViT once, however many questions there are about it."""
        from ..utils.images import read_image

        order = {image: index for index, image in enumerate(dict.fromkeys(record.image for record in records))}
        pictures = [read_image(image) if self.system.sees_image else self._gray() for image in order]
        rows = [order[record.image] for record in records]
        inputs = self.processor(
            images=[pictures[row] for row in rows],
            text=[instruction_of(record) for record in records],
            expert_inputs=self.system.reader != "base",
            return_tensors="pt",
        ).to(self.model.device, self.model.dtype)
        first = [rows.index(index) for index in range(len(pictures))]
        embeds = self.model.encode_image(inputs.pop("pixel_values")[first])  # [different images, image tokens, width]
        return {**inputs, "image_embeds": embeds[rows]}

    def _gray(self) -> "Image.Image":
        """No image: the mean color of the image encoder's training images, which normalizes to zero."""
        from PIL import Image

        mean = self.processor.image_processor.image_mean
        return Image.new("RGB", (224, 224), tuple(round(255 * channel) for channel in mean))


def _some_experts(reader: str, experts: Sequence[str]) -> list[str]:
    """The experts of `full:NAME,NAME`, in the model's order; none for another reader or an unknown name."""
    kind, _, names = reader.partition(":")
    asked = names.split(",")
    if kind != FULL or not set(asked) <= set(experts):
        return []
    return [name for name in experts if name in asked]


def instruction_of(record: Record) -> str:
    """What a system is told to do for a record."""
    from ..prompting_rsmoe import DEFAULT_INSTRUCTION, question_instruction

    return question_instruction(record.question) if isinstance(record, QuestionRecord) else DEFAULT_INSTRUCTION


def key_of(record: Record, folder: Path) -> Key:
    """What identifies a record's prediction."""
    question = record.question if isinstance(record, QuestionRecord) else ""
    return record.image.relative_to(folder.absolute()).as_posix(), question


def predict(
    predictor: Predictor,
    records: Sequence[Record],
    folder: Path,
    file: Path,
    run: str,
    batch_size: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[Key, dict[str, Any]]:
    """Predict what `file` does not hold yet, writing each batch as it comes.

    Args:
        folder: the data folder, which image names are relative to.
        run: identifies checkpoint, system and settings; written into every line.
        progress: told how many of all records are done.

    Returns:
        A line for each record, by its key: `image, dataset, split, caption` or `question, answer`, what the experts
        were asked and wrote, `seconds` of the record's share of its batch and `peak_memory` of the process in bytes.
    """
    done = read_predictions(file, run)
    groups: dict[tuple[object, str], dict[Key, Record]] = {}  # what is the same to the system is predicted once
    for record in records:
        if (key := key_of(record, folder)) not in done:
            seen = record.image if predictor.system.sees_image else None
            groups.setdefault((seen, instruction_of(record)), {})[key] = record
    waiting = list(groups.values())
    total, left = len({key_of(record, folder) for record in records}), sum(map(len, waiting))
    progress(total - left, total)
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as stream:
        for start in range(0, len(waiting), batch_size):
            batch = waiting[start : start + batch_size]
            began = time.perf_counter()
            results = predictor([next(iter(group.values())) for group in batch])
            seconds = (time.perf_counter() - began) / sum(map(len, batch))
            for group, result in zip(batch, results, strict=True):
                for key, record in group.items():
                    spoken = {"answer" if isinstance(record, QuestionRecord) else "caption": result["text"]}
                    spoken |= {name: result[name] for name in ("router_prompts", "parts") if name in result}
                    cost = {"seconds": round(seconds, 4), "peak_memory": peak_memory()}
                    done[key] = line = {**named(record, folder), **spoken, **cost, "run": run}
                    stream.write(json.dumps(line, ensure_ascii=False) + "\n")
            stream.flush()
            left -= sum(map(len, batch))
            progress(total - left, total)
    return done


def named(record: Record, folder: Path) -> dict[str, Any]:
    """What of a prediction's line says which record it is of."""
    image, question = key_of(record, folder)
    line = {"image": image, "dataset": record.dataset, "split": record.split}
    return line | ({"question": question} if question else {})


def read_predictions(file: Path, run: str | None = None) -> dict[Key, dict[str, Any]]:
    """The finished lines of a predictions file; a last line that was cut off is removed from it.

    Args:
        run: what wrote the lines; None takes predictions of any source, such as another model's.

    Raises:
        RSMoEError: a line is no prediction, or another run wrote it.
    """
    if not file.exists():
        return {}
    if not file.is_file():
        raise RSMoEError(f"{file} is not a file; give --predictions a file's name")
    content = file.read_bytes()
    whole = content.rfind(b"\n") + 1
    if run is not None and whole < len(content):  # killed while writing
        with file.open("r+b") as stream:
            stream.truncate(whole)
        content = content[:whole]
    lines = {}
    for number, raw in enumerate(content.splitlines(), start=1):
        if not raw.strip():
            continue
        try:
            line = json.loads(raw.decode("utf-8"))
            texts = [
                line["image"],
                line["answer"] if "question" in line else line["caption"],
                line.get("question", ""),
            ]
        except (ValueError, KeyError, TypeError, AttributeError):
            texts = [None]
        if not all(isinstance(text, str) for text in texts):
            raise RSMoEError(
                f"{file}:{number}: not a prediction; a line is a JSON object with image and caption, or with image, "
                "question and answer"
            )
        if run is not None and line.get("run") != run:
            raise RSMoEError(
                f"{file}:{number} was written by another checkpoint, system or setting; give --predictions another "
                "file, or delete this one to start again"
            )
        lines[line["image"], line.get("question", "")] = line
    return lines
