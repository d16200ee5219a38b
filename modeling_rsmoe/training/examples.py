"""From records to batches: the examples of a whole training in their final order, and examples as tensors.

The order depends on the records, the settings and the seed alone, and on how many examples a step has over all
processes, so that a run can be repeated, resumed, and spread over processes.
"""

import logging
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar, cast, get_args

import torch
from datasets import Dataset, concatenate_datasets

from ..data.aspects import ASPECTS
from ..data.examples import Example, Kind, stage1_examples, stage2_examples
from ..data.records import (
    QUESTIONS_FILE,
    CaptionRecord,
    QuestionRecord,
    has_questions,
    is_text,
    json_lines,
    read_captions,
    read_questions,
)
from ..errors_rsmoe import RSMoEError
from ..processing_rsmoe import RSMoEProcessor
from ..prompting_rsmoe import Prompt
from ..sequences_rsmoe import pad_left
from ..utils.images import read_images
from .features import FeatureCache
from .settings import Recipe


logger = logging.getLogger(__name__)
R = TypeVar("R", CaptionRecord, QuestionRecord)

SORTED_BATCHES = 32  # of a training are sorted by length together
PAD_TO = 8  # widths are multiples of it
PADDING, PROMPT = -1, 0  # segments of a sequence; its completions count from 1
BASE_KINDS = ("caption", "answer", "rewrite")


@dataclass(frozen=True)
class TrainingData:
    """The records of one split, and examples that were made elsewhere."""

    folder: Path
    captions: list[CaptionRecord]
    questions: list[QuestionRecord]
    extra: list[Example]
    similar: dict[Path, list[CaptionRecord]] = field(default_factory=dict)  # of an image: those most like it

    @property
    def images(self) -> list[Path]:
        """Each image once."""
        return list(dict.fromkeys(item.image for item in chain[Any](self.captions, self.questions, self.extra)))


def read_data(folder: str | Path, recipe: Recipe, split: str = "train") -> TrainingData:
    """The records that the recipe's examples are drawn from.

    Args:
        folder: the data folder.
        recipe: its shares say which records are needed, `datasets` and `question_datasets` how often. A folder of
            captions alone is trained without questions.
        split: which of the folder's splits; only train has extra examples.

    Raises:
        RSMoEError: as of `read_captions` and `read_questions`; a line of `extra_examples` that is no example.
    """
    folder, shares = Path(folder), recipe.shares
    needs_captions = any(shares[kind] for kind in shares if kind != "answer") or recipe.alignment_steps
    needs_questions = shares["answer"] or (shares["router"] and recipe.question_share)
    captions = read_captions(folder, split, recipe.datasets) if needs_captions else []
    if needs_questions and captions and not has_questions(folder) and recipe.question_datasets is None:
        logger.warning(f"{folder} has no questions ({QUESTIONS_FILE}): there are no examples of answers")
        needs_questions = False
    try:
        questions = read_questions(folder, split, recipe.question_datasets) if needs_questions else []
    except RSMoEError as error:
        raise RSMoEError(f"{error}. To train without questions, set answer_share and question_share to 0") from error
    if split == "train":
        captions, questions = _repeated(captions, recipe.datasets), _repeated(questions, recipe.question_datasets)
    extra = read_examples(recipe.extra_examples, folder) if recipe.extra_examples and split == "train" else []
    return TrainingData(folder, captions, questions, extra)


def _repeated(records: list[R], datasets: Sequence[str] | None) -> list[R]:
    """Each record as often as its dataset is named."""
    if datasets is None:
        return records
    return [record for record in records for _ in range(datasets.count(record.dataset))]


def read_examples(file: str | Path, folder: Path) -> list[Example]:
    """Examples of a JSONL file: lines with `image`, `kind`, `expert` (or null), `prompt`, `completions`.

    Raises:
        RSMoEError: with the line that is no example, or whose image is missing.
    """
    examples = []
    for entry in json_lines(Path(file), folder):
        kind, expert = cast(Kind, entry.text("kind")), entry.values.get("expert")
        if kind not in get_args(Kind):
            raise entry.error(f"kind is {kind!r}; expected one of {', '.join(get_args(Kind))}")
        if (kind in BASE_KINDS) != (expert is None) or not (expert is None or is_text(expert)):
            raise entry.error(f"expert is {expert!r} in an example of kind {kind}; only router and expert name one")
        prompt_kind: Any = "base" if kind in ("caption", "answer") else kind
        prompt = Prompt(prompt_kind, entry.text("prompt"), "", expert)  # the collator finds what the Q-Former reads
        example = Example(entry.path("image"), kind, prompt, entry.texts("completions"))
        if not example.image.is_file():
            raise entry.error(f"image {example.image} is missing; put it there or drop the line")
        examples.append(example)
    return examples


def epoch_examples(
    data: TrainingData, recipe: Recipe, instructions: dict[str, str], seed: int, epoch: int, multiple: int = 1
) -> list[Example]:
    """One epoch of examples in random order.

    Raises:
        RSMoEError: as of `stage1_examples` and `stage2_examples`; a recipe without any example.
    """
    if not any(recipe.shares.values()) and not data.extra:
        raise RSMoEError("every share of examples is 0 and there are no extra_examples; give one of them a share")
    examples = _draw_examples(data, recipe, instructions, seed, epoch, None)
    lacking = -(len(examples) + len(data.extra)) % multiple
    if examples and lacking:
        examples = _draw_examples(data, recipe, instructions, seed, epoch, len(examples) + lacking)
    examples = examples + data.extra
    random.Random(f"{seed}/{epoch}/order").shuffle(examples)
    return examples


def _draw_examples(
    data: TrainingData, recipe: Recipe, instructions: dict[str, str], seed: int, epoch: int, count: int | None
) -> list[Example]:
    """`count` examples of the base LM, the router and the experts; by default as many as the first of them have."""
    shares = {kind: share for kind, share in recipe.shares.items() if share and (kind != "answer" or data.questions)}
    base_mix = {kind: share for kind, share in shares.items() if kind in BASE_KINDS}
    adapter_mix = {kind: share for kind, share in shares.items() if kind not in BASE_KINDS}
    base_share = sum(base_mix.values()) / max(sum(shares.values()), 1e-9)
    records, references = (data.captions, data.questions), recipe.references_per_example
    examples: list[Example] = []
    if base_mix:
        base_count = None if count is None else round(count * base_share)
        examples += stage1_examples(
            *records, seed, epoch, base_count, base_mix, references, data.similar, recipe.detail_share
        )
        count = (round(len(examples) / base_share) if count is None else count) - len(examples)
    if adapter_mix:
        own = {name for record in data.captions for name in record.aspects or ()}
        aspects = {name: text for name, text in instructions.items() if name in {*ASPECTS, *own}}
        examples += stage2_examples(
            *records, aspects, seed, epoch, count, adapter_mix, recipe.question_share, references, recipe.detail_share
        )
    return examples


def by_length(examples: Sequence[Example], batch: int, seed: str) -> list[Example]:
    """Examples of similar length in the same batch, batches in random order: less padding.

    Args:
        examples: in random order.
        batch: examples of a step.
        seed: of the order of the batches.
    """
    ordered: list[Example] = []
    for start in range(0, len(examples), batch * SORTED_BATCHES):
        by_size = sorted(examples[start : start + batch * SORTED_BATCHES], key=_length)
        batches = [by_size[i : i + batch] for i in range(0, len(by_size), batch)]
        last = batches.pop() if len(batches[-1]) < batch else []
        random.Random(f"{seed}/{start}").shuffle(batches)
        ordered += chain(*batches, last)
    return ordered


def _length(example: Example) -> int:
    """Characters that are read and learned; about proportional to tokens."""
    return len(example.prompt.text) + sum(map(len, set(example.completions)))


def training_examples(
    data: TrainingData,
    recipe: Recipe,
    instructions: dict[str, str],
    seed: int,
    batch: int,
    epochs: float,
    max_steps: int = -1,
) -> Dataset:
    """All examples of a training in the order in which they are learned, `batch` for each of its steps.

    Args:
        data: from `read_data`.
        recipe: the shares of all kinds.
        instructions: the experts' instructions, by name.
        seed: of everything random.
        batch: examples of a step, over all processes.
        epochs: how long, in passes over the data, where `max_steps` is 0 or less.
        max_steps: how long, in steps.

    Returns:
        The columns `image`, `kind`, `expert`, `prompt`, `qformer_text`, `completions`.
    """
    tables = []
    epoch, drawn, total = 0, 0, max_steps * batch
    while max_steps <= 0 or drawn < total:
        examples = epoch_examples(data, recipe, instructions, seed, epoch, batch)
        if max_steps <= 0:
            max_steps = max(1, round(epochs * len(examples) / batch))
            total = max_steps * batch
        examples = by_length(examples, batch, f"{seed}/{epoch}")[: total - drawn]
        # A batch that an epoch leaves unfilled (extra examples only) is filled by the next.
        drawn += len(examples)
        tables.append(_table(examples))
        epoch += 1
    return concatenate_datasets(tables)


def val_examples(data: TrainingData, recipe: Recipe, instructions: dict[str, str], seed: int, batch: int) -> Dataset:
    """`recipe.eval_examples` examples of the val split, always the same."""
    examples = epoch_examples(data, recipe, instructions, seed, epoch=0)[: recipe.eval_examples]
    return _table(by_length(examples, batch, "val"))


def _table(examples: Sequence[Example]) -> Dataset:
    """Examples as SFTTrainer takes them; its collator reads the columns."""
    return Dataset.from_list(
        [
            {
                "image": str(example.image),
                "kind": example.kind,
                "expert": example.expert,
                "prompt": example.prompt.text,
                "qformer_text": example.prompt.qformer_text,
                "completions": example.completions,
            }
            for example in examples
        ]
    )


class ExampleCollator:
    """Examples as tensors, padded on the left; labels stand only on the completions and their end token.

    The completions of an example follow its prompt in one sequence, one after the other. Each begins with a copy of
    the prompt's last token, from which its first token is learned, and sees the prompt and itself, as it would in a
    sequence of its own; but the image and the prompt are computed once.

    Args:
        processor: writes sequences as generation does.
        features: of the images; without them, pixels are read.
    """

    def __init__(self, processor: RSMoEProcessor, features: FeatureCache | None = None):
        self.processor, self.features = processor, features
        self.kinds = [*BASE_KINDS, "router", *processor.experts]

    def __call__(self, examples: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """The batch of a training step.

        Args:
            examples: table rows with `image`, `kind`, `expert`, `prompt`, `completions` and `qformer_text`. Where the
                last is missing or empty (a line of `extra_examples`), it is read out of the prompt. `weights`, one of
                each completion, take the place of equal ones; they may be negative.

        Returns:
            `input_ids`, `position_ids`, `labels` [examples, tokens].
            `attention_mask` [examples, tokens], or where an example has several completions
            [examples, 1, tokens, tokens], true where a token sees another.
            `token_weights`, `example_weights` [examples, tokens], where labels are: the weights of an example's tokens
            add up to the mean length of its completions, or to 1.
            `qformer_input_ids`, `qformer_attention_mask` [examples, tokens].
            `image_embeds` [examples, patches, width] or `pixel_values` [examples, 3, height, width].
            `kinds` [examples], places in `self.kinds`.
        """
        tokenizer = self.processor.tokenizer
        sequences = [
            self._sequence(ids, example["completions"], example.get("weights"))
            for ids, example in zip(self._prompt_ids(examples), examples)
        ]
        longest = max(len(columns["input_ids"]) for columns in sequences)
        width = -(-longest // PAD_TO) * PAD_TO
        padding = {"input_ids": tokenizer.pad_token_id, "labels": -100, "segments": PADDING}
        tensors = {}
        for name in sequences[0]:
            pads = [[padding.get(name, 0)] * (width - len(columns[name])) for columns in sequences]
            tensors[name] = torch.tensor([pad + columns[name] for pad, columns in zip(pads, sequences)])
        segments = tensors.pop("segments")
        one_completion = segments.max() == 1
        tensors["attention_mask"] = (segments != PADDING).long() if one_completion else _completions_mask(segments)
        kinds = torch.tensor([self._kind(example) for example in examples])
        return {**tensors, "kinds": kinds, **self._encoder_inputs(examples)}

    def prompts(self, examples: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """What `generate` takes to write a completion of each example.

        Args:
            examples: as above.

        Returns:
            `input_ids`, `attention_mask` [examples, tokens], padded on the left, and what the encoder reads.
        """
        pad = self.processor.tokenizer.pad_token_id
        ids, mask = pad_left(self._prompt_ids(examples), pad, "cpu")
        return {"input_ids": ids, "attention_mask": mask, **self._encoder_inputs(examples)}

    def _prompt_ids(self, examples: Sequence[dict[str, Any]]) -> list[list[int]]:
        prompts = [self.processor.render(example["prompt"]) for example in examples]
        return self.processor.tokenizer([self.processor.with_image_tokens(prompt) for prompt in prompts])["input_ids"]

    def _encoder_inputs(self, examples: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        processor = self.processor
        texts = [
            example.get("qformer_text") or processor.read_rendered(processor.render(example["prompt"]))
            for example in examples
        ]
        return {
            **processor.tokenize_qformer(texts, "pt"),
            **self._images([example["image"] for example in examples]),
        }

    def _sequence(
        self, prompt: list[int], completions: Sequence[str], weights: Sequence[float] | None
    ) -> dict[str, list[Any]]:
        """The columns of one example. Segment 0 is the prompt, 1 its first completion, and so on."""
        tokenizer = self.processor.tokenizer
        shares: defaultdict[str, float] = defaultdict(float)
        for text, weight in zip(completions, weights or [1 / len(completions)] * len(completions), strict=True):
            shares[text] += weight
        before = len(prompt) - 1
        columns: dict[str, list[Any]] = {
            "input_ids": prompt[:-1],
            "position_ids": list(range(before)),
            "labels": [-100] * before,
            "segments": [PROMPT] * before,
            "token_weights": [0.0] * before,
            "example_weights": [0.0] * before,
        }
        texts = [f" {text}{tokenizer.eos_token}" for text in shares]
        completion_ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
        for segment, (ids, share) in enumerate(zip(completion_ids, shares.values()), start=1):
            columns["input_ids"] += [prompt[-1], *ids]
            columns["position_ids"] += range(before, before + len(ids) + 1)
            columns["labels"] += [-100, *ids]
            columns["segments"] += [segment] * (len(ids) + 1)
            columns["token_weights"] += [0.0] + [share] * len(ids)
            columns["example_weights"] += [0.0] + [share / len(ids)] * len(ids)
        return columns

    def _images(self, images: list[str]) -> dict[str, torch.Tensor]:
        if self.features is not None:
            return {"image_embeds": self.features(images)}
        return dict(self.processor.image_processor(images=read_images(images), return_tensors="pt"))

    def _kind(self, example: dict[str, Any]) -> int:
        name = example["expert"] if example["kind"] == "expert" else example["kind"]
        if name not in self.kinds:
            raise RSMoEError(
                f"an example is for the expert {name!r}, but the model has {', '.join(self.processor.experts)}"
            )
        return self.kinds.index(name)


def _completions_mask(segments: torch.Tensor) -> torch.Tensor:
    """[examples, 1, tokens, tokens]: a token sees the prompt, and of its own completion what stands before it."""
    length = segments.shape[1]
    query, key = segments.unsqueeze(2), segments.unsqueeze(1)
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    itself = torch.eye(length, dtype=torch.bool)  # of padding too: a softmax over nothing is not a number
    same_text = (key == PROMPT) | (key == query)
    return ((same_text & (key != PADDING) & causal) | itself).unsqueeze(1)
