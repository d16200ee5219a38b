"""From records to batches: the rows of a whole training in their final order, and rows as tensors.

The order depends on the records, the settings and the seed alone, and on how many rows a step has over all processes,
so that a run can be repeated, resumed, and spread over processes.
"""

import json
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args

import torch

from ..data.aspects import ASPECTS
from ..data.records import CaptionRecord, Entry, QuestionRecord, is_text, read_captions, read_questions
from ..data.rows import Kind, Row, stage1_rows, stage2_rows
from ..errors_rsmoe import RSMoEError
from ..utils.images import read_images
from .settings import Recipe


if TYPE_CHECKING:
    from datasets import Dataset

    from ..processing_rsmoe import RSMoEProcessor
    from .features import FeatureCache

R = TypeVar("R", CaptionRecord, QuestionRecord)

SORTED_BATCHES = 32  # of a training are sorted by length together
PAD_TO = 8  # widths are multiples of it
PADDING, PROMPT = -1, 0  # segments of a row of tokens; its completions count from 1
LLM_KINDS = ("caption", "answer", "rewrite")


@dataclass(frozen=True)
class TrainingData:
    """The records of one split, and rows that were made elsewhere."""

    folder: Path
    captions: list[CaptionRecord]
    questions: list[QuestionRecord]
    extra: list[Row]
    similar: dict[Path, list[CaptionRecord]] = field(default_factory=dict)  # images that look like an image

    @property
    def images(self) -> list[Path]:
        """Each image once."""
        every: list[CaptionRecord | QuestionRecord | Row] = [*self.captions, *self.questions, *self.extra]
        return list(dict.fromkeys(item.image for item in every))


def read_data(folder: str | Path, recipe: Recipe, split: str = "train") -> TrainingData:
    """The records that the recipe's rows are drawn from.

    Raises:
        RSMoEError: as of `read_captions` and `read_questions`; a line of `extra_rows` that is no row.
    """
    folder = Path(folder)
    shares = recipe.shares
    wants_captions = any(shares[kind] for kind in ("caption", "rewrite", "router", "expert")) or recipe.align_steps
    wants_questions = shares["answer"] or (shares["router"] and recipe.question_share)
    captions = read_captions(folder, split, recipe.datasets) if wants_captions else []
    try:
        questions = read_questions(folder, split, recipe.question_datasets) if wants_questions else []
    except RSMoEError as error:
        raise RSMoEError(f"{error}. To train without questions, set answer_share and question_share to 0") from error
    if split == "train":
        captions, questions = _repeated(captions, recipe.datasets), _repeated(questions, recipe.question_datasets)
    extra = read_rows(recipe.extra_rows, folder) if recipe.extra_rows and split == "train" else []
    return TrainingData(folder, captions, questions, extra)


def _repeated(records: list[R], datasets: Sequence[str] | None) -> list[R]:
    """Each record as often as its dataset is named."""
    if datasets is None:
        return records
    return [record for record in records for _ in range(datasets.count(record.dataset))]


def read_rows(file: str | Path, folder: Path) -> list[Row]:
    """Rows of a JSONL file, whose `image` paths are relative to the data folder.

    Raises:
        RSMoEError: with the line that is no row, or whose image is missing.
    """
    rows = []
    try:
        lines = Path(file).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RSMoEError(f"extra_rows {file} cannot be read ({error}); give a JSONL file of rows") from error
    for number, line in enumerate(lines, start=1):
        where = f"{file}:{number}"
        try:
            values = json.loads(line)
        except ValueError as error:
            raise RSMoEError(f"{where}: no JSON ({error}); write one object a line") from error
        if not isinstance(values, dict):
            raise RSMoEError(f"{where}: expected an object; write image, kind, expert, prompt, completions")
        entry = Entry(where, folder, values)
        kind, expert = entry.text("kind"), values.get("expert")
        if kind not in get_args(Kind):
            raise entry.error(f"kind is {kind!r}; expected one of {', '.join(get_args(Kind))}")
        if (kind in LLM_KINDS) != (expert is None) or not (expert is None or is_text(expert)):
            raise entry.error(f"expert is {expert!r} in a row of kind {kind}; only router and expert rows name one")
        row = Row(entry.path("image"), kind, expert, entry.text("prompt"), entry.texts("completions"))  # type: ignore[arg-type]
        if not row.image.is_file():
            raise entry.error(f"image {row.image} is missing; put it there or drop the line")
        rows.append(row)
    return rows


def epoch_rows(
    data: TrainingData, recipe: Recipe, instructions: dict[str, str], seed: int, epoch: int, multiple: int = 1
) -> list[Row]:
    """One epoch of rows in random order, their number rounded up to a multiple of `multiple`.

    Args:
        instructions: the experts' fixed prompts, by name; only aspects have sentences to learn from.

    Raises:
        RSMoEError: as of `stage1_rows` and `stage2_rows`; a recipe without any row.
    """
    if not any(recipe.shares.values()) and not data.extra:
        raise RSMoEError("every share of rows is 0 and there are no extra_rows; give one of them a share")
    rows = _drawn_rows(data, recipe, instructions, seed, epoch, None)
    lacking = -(len(rows) + len(data.extra)) % multiple
    if rows and lacking:
        rows = _drawn_rows(data, recipe, instructions, seed, epoch, len(rows) + lacking)
    rows = rows + data.extra
    random.Random(f"{seed}/{epoch}/order").shuffle(rows)
    return rows


def _drawn_rows(
    data: TrainingData, recipe: Recipe, instructions: dict[str, str], seed: int, epoch: int, count: int | None
) -> list[Row]:
    """`count` rows of the base LM, the router and the experts; by default as many as the first of them have."""
    llm = {kind: share for kind, share in recipe.shares.items() if kind in LLM_KINDS and share}
    moe = {kind: share for kind, share in recipe.shares.items() if kind not in LLM_KINDS and share}
    llm_share = sum(llm.values()) / max(sum(recipe.shares.values()), 1e-9)
    rows: list[Row] = []
    if llm:
        llm_count = None if count is None else round(count * llm_share)
        rows += stage1_rows(
            data.captions, data.questions, seed, epoch, llm_count, llm, recipe.references_per_row, data.similar
        )
    if moe:
        moe_count = count
        if llm:
            moe_count = (round(len(rows) / llm_share) if count is None else count) - len(rows)
        aspects = {name: text for name, text in instructions.items() if name in ASPECTS}
        rows += stage2_rows(
            data.captions,
            data.questions,
            aspects,
            seed,
            epoch,
            moe_count,
            moe,
            recipe.question_share,
            recipe.references_per_row,
        )
    return rows


def by_length(rows: Sequence[Row], batch: int, seed: str) -> list[Row]:
    """Rows of similar length in the same batch, batches in random order: less padding."""
    ordered: list[Row] = []
    for start in range(0, len(rows), batch * SORTED_BATCHES):
        some = sorted(rows[start : start + batch * SORTED_BATCHES], key=_length)
        batches = [some[i : i + batch] for i in range(0, len(some), batch)]
        last = batches.pop() if len(batches[-1]) < batch else []
        random.Random(f"{seed}/{start}").shuffle(batches)
        ordered += [row for each in batches for row in each] + last
    return ordered


def _length(row: Row) -> int:
    """Letters that are learned from; about proportional to tokens."""
    return len(row.prompt) + sum(map(len, set(row.completions)))


def training_rows(
    data: TrainingData,
    recipe: Recipe,
    instructions: dict[str, str],
    seed: int,
    batch: int,
    epochs: float,
    max_steps: int = -1,
) -> "Dataset":
    """All rows of a training in the order in which they are learned, `batch` rows for each of its steps.

    Args:
        batch: rows of a step, over all processes.
        epochs, max_steps: how long; steps win where they are above 0.
    """
    from datasets import concatenate_datasets

    tables = []
    epoch, made, wanted = 0, 0, max_steps * batch
    while max_steps <= 0 or made < wanted:
        rows = epoch_rows(data, recipe, instructions, seed, epoch, batch)
        if max_steps <= 0:
            max_steps = max(1, round(epochs * len(rows) / batch))
            wanted = max_steps * batch
        rows = by_length(rows, batch, f"{seed}/{epoch}")[: wanted - made]
        # A batch that an epoch leaves unfilled (extra rows only) is filled by the next.
        made += len(rows)
        tables.append(_table(rows))
        epoch += 1
    return concatenate_datasets(tables)


def val_rows(data: TrainingData, recipe: Recipe, instructions: dict[str, str], seed: int, batch: int) -> "Dataset":
    """`recipe.eval_rows` rows of the val split, always the same."""
    rows = epoch_rows(data, recipe, instructions, seed, epoch=0)[: recipe.eval_rows]
    return _table(by_length(rows, batch, "val"))


def _table(rows: Sequence[Row]) -> "Dataset":
    """Rows as SFTTrainer takes them; its collator reads the columns."""
    from datasets import Dataset

    return Dataset.from_list([{**asdict(row), "image": str(row.image)} for row in rows])


class RowCollator:
    """Rows as tensors, padded on the left; labels stand only on the completions and their end token.

    The completions of a row follow its prompt one after the other. Each begins with a copy of the prompt's last token,
    from which its first token is learned, and sees the prompt and itself: what a row of its own would see, while the
    image and the prompt are computed once.

    Args:
        processor: writes rows down as generation does.
        features: of the images; without them, pixels are read.
    """

    def __init__(self, processor: "RSMoEProcessor", features: "FeatureCache | None" = None):
        self.processor, self.features = processor, features
        self.kinds = ["caption", "answer", "rewrite", "router", *processor.experts]

    def __call__(self, examples: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """`input_ids`, `position_ids`, `labels` [rows, tokens]; `attention_mask` [rows, tokens], or where a row has
        several completions [rows, 1, tokens, tokens], true where a token sees another; `token_weights`, `row_weights`
        [rows, tokens], where labels are: of a row's completions the weights of the tokens add up to their mean number,
        or to 1; `qformer_*` [rows, tokens]; `image_embeds` or `pixel_values` [rows, ...]; `kinds` [rows], places in
        `self.kinds`."""
        processor, tokenizer = self.processor, self.processor.tokenizer
        prompts = [processor.render(row["prompt"]) for row in examples]
        prompt_ids = tokenizer([processor.with_image_tokens(prompt) for prompt in prompts])["input_ids"]
        written = [self._write(ids, row["completions"]) for ids, row in zip(prompt_ids, examples)]
        width = -(-max(len(columns["input_ids"]) for columns in written) // PAD_TO) * PAD_TO
        padding = {"input_ids": tokenizer.pad_token_id, "labels": -100, "segments": PADDING}
        tensors = {
            name: torch.tensor(
                [[padding.get(name, 0)] * (width - len(columns[name])) + columns[name] for columns in written]
            )
            for name in written[0]
        }
        segments = tensors.pop("segments")
        tensors["attention_mask"] = (segments != PADDING).long() if segments.max() == 1 else _seen(segments)
        qformer = processor.tokenize_qformer([processor.qformer_instruction(prompt) for prompt in prompts], "pt")
        return {
            **tensors,
            "qformer_input_ids": qformer["input_ids"],
            "qformer_attention_mask": qformer["attention_mask"],
            "kinds": torch.tensor([self._kind(row) for row in examples]),
            **self._images([row["image"] for row in examples]),
        }

    def _write(self, prompt: list[int], completions: Sequence[str]) -> dict[str, list[Any]]:
        """The columns of one row. Segment 0 is the prompt, 1 its first completion, and so on."""
        tokenizer = self.processor.tokenizer
        counts = Counter(completions)
        texts = [f" {text}{tokenizer.eos_token}" for text in counts]
        before = len(prompt) - 1
        row: dict[str, list[Any]] = {
            "input_ids": prompt[:-1],
            "position_ids": list(range(before)),
            "labels": [-100] * before,
            "segments": [PROMPT] * before,
            "token_weights": [0.0] * before,
            "row_weights": [0.0] * before,
        }
        ids_of = tokenizer(texts, add_special_tokens=False)["input_ids"]
        for segment, (ids, count) in enumerate(zip(ids_of, counts.values()), start=1):
            share = count / counts.total()
            row["input_ids"] += [prompt[-1], *ids]
            row["position_ids"] += range(before, before + len(ids) + 1)
            row["labels"] += [-100, *ids]
            row["segments"] += [segment] * (len(ids) + 1)
            row["token_weights"] += [0.0] + [share] * len(ids)
            row["row_weights"] += [0.0] + [share / len(ids)] * len(ids)
        return row

    def _images(self, images: list[str]) -> dict[str, torch.Tensor]:
        if self.features is not None:
            return {"image_embeds": self.features(images)}
        # One image after the other: pictures of one batch need not have the same size.
        pictures = read_images([Path(image) for image in images])
        pixels = self.processor.image_processor(images=pictures, return_tensors="pt")["pixel_values"]
        return {"pixel_values": pixels}

    def _kind(self, row: dict[str, Any]) -> int:
        name = row["expert"] if row["kind"] == "expert" else row["kind"]
        if name not in self.kinds:
            raise RSMoEError(
                f"a row is for the expert {name!r}, but the model has {', '.join(self.processor.experts)}"
            )
        return self.kinds.index(name)


def _seen(segments: torch.Tensor) -> torch.Tensor:
    """[rows, 1, tokens, tokens]: what each token sees; the prompt, and of its own completion what stands before it."""
    length = segments.shape[1]
    seer, seen = segments.unsqueeze(2), segments.unsqueeze(1)
    before = torch.ones(length, length, dtype=torch.bool).tril()
    own = torch.eye(length, dtype=torch.bool)  # of padding too: a softmax over nothing is not a number
    return ((((seen == PROMPT) | (seen == seer)) & (seen != PADDING) & before) | own).unsqueeze(1)
