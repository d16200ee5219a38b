"""The full model's sequences: their names among the inputs of `generate`, and as lists of token ids to and from padded
tensors, with texts put in, one after another."""

from collections.abc import Collection, Sequence
from os.path import commonprefix
from typing import Any

import torch


# Made by the processor for the full model; a model's own forward ignores them. Each kind of sequence has `_input_ids`
# and `_attention_mask`. Tokens are dimension 1, which transformers' pipelines pad.
SEQUENCES = (
    "router",  # [num_images, tokens, num_experts]: asks the router for each expert's prompt
    "expert",  # [num_images, tokens, num_experts]: each expert's, with one <prompt> token where its prompt goes
    "expert_qformer",  # [num_images, tokens, num_experts]: each expert's sub-task instruction
    "rewrite",  # [num_images, tokens]: the base LM's, with a <prompt> token for each expert's text
    "template_prompt",  # [num_images, tokens, num_experts]: each expert's fixed prompt
    "instruction",  # [num_images, tokens]: the user's instruction
)
EXPERT_INPUTS = (
    *(f"{name}_{suffix}" for name in SEQUENCES for suffix in ("input_ids", "attention_mask")),
    "task_ids",  # [num_images]: places in `prompting_rsmoe.TASKS`
)
ONE_IMAGE = (
    "Router and experts read texts about one image each, and a text here is about none or several: ask about each "
    "image by itself, or give the processor expert_inputs=False (in a chat or pipeline: processor_kwargs="
    '{"expert_inputs": False}), and the base LM alone reads them all.'
)

Tokens = list[int]


def pad_right(sequences: Sequence[Tokens], pad: int, device) -> torch.Tensor:
    """Ids [batch_size, tokens]."""
    width = max(1, *map(len, sequences))
    padded = [tokens + [pad] * (width - len(tokens)) for tokens in sequences]
    return torch.tensor(padded, dtype=torch.long, device=device)


def pad_left(sequences: Sequence[Tokens], pad: int, device) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask [batch_size, tokens]."""
    width = max(map(len, sequences))
    ids = [[pad] * (width - len(tokens)) + tokens for tokens in sequences]
    mask = [[0] * (width - len(tokens)) + [1] * len(tokens) for tokens in sequences]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def by_expert(values: Any) -> Any:
    """[num_images, tokens, num_experts] -> [num_images, num_experts, tokens]; other shapes stay."""
    return values.transpose(1, 2) if values is not None and values.ndim == 3 else values


def unpad(ids: torch.Tensor, mask: torch.Tensor) -> list:
    """The real tokens of sequences `[..., tokens]`, where the mask is 1, as nested lists."""
    if ids.ndim == 1:
        return ids[mask.bool()].tolist()
    return [unpad(row_ids, row_mask) for row_ids, row_mask in zip(ids.cpu(), mask.cpu())]


def fill_slots(tokens: Tokens, slot: int, texts: Sequence[Tokens]) -> Tokens:
    """A sequence with texts, in order, in the place of its slots: the token `<prompt>`."""
    filled: Tokens = []
    remaining = iter(texts)
    for token in tokens:
        filled += next(remaining) if token == slot else [token]
    return filled


def shared_prefix_length(sequences: Sequence[Tokens]) -> int:
    """Tokens that all sequences begin with; at least one of each is left."""
    return min(len(commonprefix(sequences)), *(len(tokens) - 1 for tokens in sequences))


def split_sentences(tokens: Tokens, sentence_ends: Collection[int]) -> list[Tokens]:
    """The sentences of a text, each with the token that ends it."""
    sentences: list[Tokens] = []
    start = 0
    for place, token in enumerate(tokens, start=1):
        if token in sentence_ends or place == len(tokens):
            sentences.append(tokens[start:place])
            start = place
    return sentences


def join_sentences(texts: Sequence[Tokens], sentence_ends: Collection[int]) -> Tokens:
    """Texts one after another; a sentence that stands before is dropped. Without tokens that end a sentence whole
    texts are compared."""
    sentences: list[Tokens] = []
    for tokens in texts:
        for sentence in split_sentences(tokens, sentence_ends):
            if sentence not in sentences:
                sentences.append(sentence)
    return [token for sentence in sentences for token in sentence]
