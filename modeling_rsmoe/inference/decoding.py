"""Greedy decoding whose batch shrinks: sequences that have ended leave it, and those that are left go on faster.

The tokens are those of transformers' own greedy search; what is saved is measured by `rsmoe bench`. Given to
`generate` as `custom_generate=shrinking_greedy`, transformers' own place for a decoding loop.
"""

from typing import Any

import torch
from torch import nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer
from transformers.generation import (
    EosTokenCriteria,
    MaxLengthCriteria,
    MinLengthLogitsProcessor,
    MinNewTokensLengthLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    SuppressTokensAtBeginLogitsProcessor,
    SuppressTokensLogitsProcessor,
)

from ..adapters_rsmoe import RSMoECache
from ..paragraphs_rsmoe import EndsAtRepetition


# Sequences that have ended leave when they are one in so many: the others' cache is copied then.
LEAVE_AT = 4
# So many tokens does a cache have room for before all of it is copied to a larger place.
ROOM = 32
# Tokens that a processor forbids at a length: written into the scores, where transformers makes a new tensor of the
# size of the vocabulary for each.
FORBIDDEN_TOKENS = {
    MinLengthLogitsProcessor: lambda processor, length: (
        processor.eos_token_id if length < processor.min_length else None
    ),
    MinNewTokensLengthLogitsProcessor: lambda processor, length: (
        processor.eos_token_id if length - processor.prompt_length_to_skip < processor.min_new_tokens else None
    ),
    SuppressTokensLogitsProcessor: lambda processor, length: processor.suppress_tokens,
}
# Each treats a sequence by that sequence's tokens alone, so it does not matter which others are still there.
INDEPENDENT = {*FORBIDDEN_TOKENS, EosTokenCriteria, MaxLengthCriteria}
INDEPENDENT |= {NoRepeatNGramLogitsProcessor, SuppressTokensAtBeginLogitsProcessor, EndsAtRepetition}


def is_greedy(generation_config: Any, **arguments: Any) -> bool:
    """Whether `generate` with these arguments, which win, is a greedy search, which `shrinking_greedy` may do."""
    given = {name: value for name, value in arguments.items() if value is not None}
    num_beams = given.get("num_beams", generation_config.num_beams)
    return (num_beams or 1) == 1 and not given.get("do_sample", generation_config.do_sample)


def shrinking_greedy(
    model: Any,
    input_ids: torch.LongTensor,
    logits_processor: Any,
    stopping_criteria: Any,
    generation_config: Any,
    **model_kwargs: Any,
) -> Any:
    """For `generate(..., custom_generate=shrinking_greedy)` of a greedy search, without a streamer.

    Where the batch cannot shrink (a GPU, which would have to wait for each step's tokens; a cache of another kind or
    of the caller; processors that look at all sequences) it is transformers' own search.

    Arguments are those that `generate` gives to its searches.

    Returns:
        `torch.LongTensor` of shape `(batch_size, sequence_length)`: a sequence that has ended is padded.
    """
    cache = model_kwargs.get("past_key_values")
    shrinks = (
        input_ids.device.type == "cpu"
        and generation_config.use_cache
        and not generation_config.return_dict_in_generate
        and type(cache) in (DynamicCache, RSMoECache)
        and (getattr(cache, "disposable", False) or not getattr(cache, "_is_user_defined", False))
        and {type(each) for each in (*logits_processor, *stopping_criteria)} <= INDEPENDENT
    )
    if not shrinks:
        return model._sample(input_ids, logits_processor, stopping_criteria, generation_config, **model_kwargs)
    places = torch.arange(len(input_ids))  # of the sequences that are still in the batch
    has_ended = torch.zeros(len(input_ids), dtype=torch.bool)  # of those
    finished: list[torch.Tensor] = [input_ids[0]] * len(input_ids)
    outputs = model._prefill(input_ids, generation_config, model_kwargs)
    _make_roomy(outputs.past_key_values)
    while True:
        model_kwargs = model._update_model_kwargs_for_generation(outputs, model_kwargs)
        scores = _processed(outputs.logits[:, -1].float(), input_ids, logits_processor)
        input_ids = torch.cat([input_ids, scores.argmax(-1, keepdim=True)], dim=-1)  # type: ignore[assignment]
        ends = stopping_criteria(input_ids, None)
        for index in (ends & ~has_ended).nonzero().flatten().tolist():
            finished[places[index]] = input_ids[index]
        has_ended |= ends
        if has_ended.all():
            break
        if has_ended.sum() * LEAVE_AT >= len(has_ended):
            input_ids, places = input_ids[~has_ended], places[~has_ended]  # type: ignore[assignment]
            model_kwargs, has_ended = _select(model_kwargs, ~has_ended), has_ended[~has_ended]
        inputs = model.prepare_inputs_for_generation(input_ids, next_sequence_length=1, **model_kwargs)
        outputs = model(**inputs, return_dict=True)
    pad = generation_config._pad_token_tensor
    return nn.utils.rnn.pad_sequence(finished, batch_first=True, padding_value=0 if pad is None else int(pad))


shrinking_greedy.every_decode = True  # type: ignore[attr-defined]  # the router, too, searches greedily


class _RoomyLayer(DynamicLayer):
    """A layer of a cache whose keys and values are the beginning of larger tensors: a step writes its own there, where
    transformers copies all of them."""

    keys: torch.Tensor
    values: torch.Tensor
    room: tuple[torch.Tensor, ...] = ()

    def update(self, key_states, value_states, *args, **kwargs) -> tuple[torch.Tensor, torch.Tensor]:
        start = self.keys.shape[-2]
        end = start + key_states.shape[-2]
        # Sequences that leave, and whoever else replaces keys and values, leave the room behind.
        if not self.room or self.keys.data_ptr() != self.room[0].data_ptr() or end > self.room[0].shape[-2]:
            self.room = tuple(
                torch.cat([states, states.new_empty(*states.shape[:-2], ROOM + end - start, states.shape[-1])], dim=-2)
                for states in (self.keys, self.values)
            )
        for room, states in zip(self.room, (key_states, value_states)):
            room[..., start:end, :] = states
        self.keys, self.values = (room[..., :end, :] for room in self.room)
        return self.keys, self.values


def _make_roomy(cache: DynamicCache) -> None:
    for layer in cache.layers:
        if type(layer) is DynamicLayer:
            layer.__class__ = _RoomyLayer


def _processed(scores: torch.Tensor, input_ids: torch.Tensor, processors) -> torch.Tensor:
    """Scores [batch_size, vocab_size], which may be written to, after all processors."""
    for processor in processors:
        if type(processor) in FORBIDDEN_TOKENS:
            tokens = FORBIDDEN_TOKENS[type(processor)](processor, input_ids.shape[1])
            scores = scores if tokens is None else scores.index_fill_(-1, tokens, -torch.inf)
        else:
            scores = processor(input_ids, scores)
    return scores


def _select(model_kwargs: dict, keep: torch.Tensor) -> dict:
    """Of what goes with each sequence, those of `keep` (mask [batch_size]); the images were read at the first step."""
    model_kwargs["past_key_values"].batch_select_indices(keep.nonzero().flatten())
    selected = {}
    for name in ("attention_mask", "position_ids", "adapter_ids"):
        value = model_kwargs.get(name)
        if value is not None and len(value) == len(keep):  # else one for all sequences
            selected[name] = value[keep]
    return {**model_kwargs, **selected, "mm_encoder_outputs": None}
