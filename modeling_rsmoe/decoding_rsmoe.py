"""Decoding on a processor: rows that have ended leave the batch, and products go the fast way.

Both write the tokens that transformers' own greedy search writes; what they save is measured by `rsmoe bench`.
"""

from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.weak import WeakIdKeyDictionary
from transformers.generation import (
    EosTokenCriteria,
    GenerationMixin,
    MaxLengthCriteria,
    MinLengthLogitsProcessor,
    MinNewTokensLengthLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    SuppressTokensAtBeginLogitsProcessor,
    SuppressTokensLogitsProcessor,
)


# Each treats a row by that row's own tokens alone, so it does not matter which other rows are still there.
ROW_BY_ROW = {
    EosTokenCriteria,
    MaxLengthCriteria,
    MinLengthLogitsProcessor,
    MinNewTokensLengthLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    SuppressTokensAtBeginLogitsProcessor,
    SuppressTokensLogitsProcessor,
}

# Rows that have ended leave when they are one in so many: the others' cache is copied then.
LEAVING = 4
# Tokens that a processor forbids at a length: written into the scores, where transformers makes a new tensor of the size
# of the vocabulary for each.
FORBIDS = {
    MinLengthLogitsProcessor: lambda own, length: own.eos_token_id if length < own.min_length else None,
    MinNewTokensLengthLogitsProcessor: lambda own, length: (
        own.eos_token_id if length - own.prompt_length_to_skip < own.min_new_tokens else None
    ),
    SuppressTokensLogitsProcessor: lambda own, length: own.suppress_tokens,
}


class FewRowsLinear(nn.Linear):
    """A linear layer whose product of few rows reads its weight as fast as memory allows, or nearer to that.

    On processors without AVX-512, MKL's product of 2 to 8 rows takes up to twice as long as that of one row, though it
    reads the same weight; with the weight as the left factor it does not, least of all where the rows are a multiple of
    4. That of one row is faster in several parts of the weight, where the weight is not longer than wide.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.numel() // self.in_features
        if not 1 <= rows <= 8 or torch.compiler.is_compiling():
            return super().forward(x)
        columns = x.reshape(rows, -1).t()
        if rows == 1:
            parts = self._parts()
            if parts == 1:
                return super().forward(x)
            product = torch.bmm(self.weight.view(parts, -1, self.in_features), columns.expand(parts, -1, 1))
            return product.view(*x.shape[:-1], -1)
        if rows % 4 == 3 and self.out_features > self.in_features:  # a row of zeros more
            columns = F.pad(columns.t(), (0, 0, 0, 1)).t()
        # The next product needs rows that lie together again.
        product = torch.mm(self.weight, columns)[:, :rows].t().contiguous()
        return product.view(*x.shape[:-1], -1)

    def _parts(self) -> int:
        if self.in_features > self.out_features:
            return 1
        return next((parts for parts in (8, 6, 4, 3, 2) if self.out_features % parts == 0), 1)


class HalfWeightLinear(nn.Linear):
    """A linear layer whose float32 weight is made of numbers that half precision has, as of a checkpoint that was written in
    float16: products read a copy in half precision, half as many bytes, and compute in float32 (FBGEMM)."""

    packed: Any  # the copy, set by `fast_products`

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if torch.compiler.is_compiling():
            return super().forward(x)
        return torch.ops.quantized.linear_dynamic_fp16(x, self.packed)


class _Copy(NamedTuple):
    """Of which numbers of a weight, and packed; None where it has numbers that half precision has not."""

    state: tuple[int, int]
    sample: torch.Tensor
    packed: Any


_COPIES = WeakIdKeyDictionary()  # weight -> _Copy: layers and models that share a weight share its copy
SAMPLE = 997  # one number in so many is looked at, since a change of `weight.data` gives it no new version


def _half_weight(parameter: nn.Parameter) -> Any:
    """The packed copy of a weight, made once, and again when the weight has changed."""
    weight = parameter.detach()
    state = weight.data_ptr(), 0 if weight.is_inference() else weight._version
    sample = weight.flatten()[::SAMPLE]
    known = _COPIES.get(parameter)
    if known is None or known.state != state or not torch.equal(known.sample, sample):
        fits = all(torch.equal(some.half().float(), some) for some in (sample, weight))  # a few tell of most others
        packed = torch.ops.quantized.linear_prepack_fp16(weight, None) if fits else None
        known = _COPIES[parameter] = _Copy(state, sample.clone(), packed)
    return known.packed


def is_slow(layer: nn.Module) -> bool:
    """Whether torch's own product of this layer is."""
    return (
        type(layer) is nn.Linear
        and type(layer.weight) is nn.Parameter  # quantised and split weights have products of their own
        and (layer.weight.device.type, layer.weight.dtype) == ("cpu", torch.float32)
        and layer.bias is None
        and torch.backends.cpu.get_cpu_capability() == "AVX2"
    )


@contextmanager
def fast_products(*models: nn.Module):
    """Within: the linear layers of `models` are [`HalfWeightLinear`] or [`FewRowsLinear`]. Only where no gradient is taken."""
    layers: list[Any] = [layer for model in models for layer in model.modules() if is_slow(layer)]
    halves = "fbgemm" in torch.backends.quantized.supported_engines
    try:
        for layer in layers:
            layer.packed = _half_weight(layer.weight) if halves else None
            layer.__class__ = FewRowsLinear if layer.packed is None else HalfWeightLinear
        yield
    finally:
        for layer in layers:
            layer.__class__ = nn.Linear
            vars(layer).pop("packed", None)


class RowDecodingMixin(GenerationMixin):
    """Greedy search whose batch shrinks, in front of transformers' own."""

    def _sample(
        self,
        input_ids: torch.LongTensor,
        logits_processor,
        stopping_criteria,
        generation_config,
        synced_gpus: bool = False,
        streamer=None,
        **model_kwargs,
    ) -> Any:
        """Where no row needs the others, [`shrinking_greedy`]; else transformers' own sampling or greedy search."""
        config, cache = generation_config, model_kwargs.get("past_key_values")
        alone = not (config.do_sample or config.return_dict_in_generate or synced_gpus or streamer is not None)
        shrinks = (
            input_ids.device.type == "cpu"  # a GPU would have to wait for each step's tokens
            and config.use_cache
            and type(cache).__name__ == "DynamicCache"
            # A cache of the caller's goes back whole.
            and (getattr(cache, "may_shrink", False) or not getattr(cache, "_is_user_defined", False))
            and {type(each) for each in (*logits_processor, *stopping_criteria)} <= ROW_BY_ROW
        )
        if alone and shrinks:
            return self._shrinking_greedy(
                input_ids, logits_processor, stopping_criteria, generation_config, model_kwargs
            )
        return super()._sample(  # type: ignore[misc]  # transformers annotates `self`
            input_ids,
            logits_processor,
            stopping_criteria,
            generation_config,
            synced_gpus=synced_gpus,
            streamer=streamer,
            **model_kwargs,
        )

    def _shrinking_greedy(self, input_ids, logits_processor, stopping_criteria, generation_config, model_kwargs):
        """The tokens of transformers' greedy search, [rows, tokens]: a row that has ended is padded, not computed."""
        model: Any = self
        rows = torch.arange(len(input_ids))  # those still in the batch
        over = torch.zeros(len(input_ids), dtype=torch.bool)  # of them, those that have ended
        ended: list[torch.Tensor] = [input_ids[0]] * len(input_ids)
        outputs = model._prefill(input_ids, generation_config, model_kwargs)
        while True:
            model_kwargs = model._update_model_kwargs_for_generation(outputs, model_kwargs)
            scores = _processed(outputs.logits[:, -1].float(), input_ids, logits_processor)
            input_ids = torch.cat([input_ids, scores.argmax(-1, keepdim=True)], dim=-1)
            done = stopping_criteria(input_ids, None)
            for row in (done & ~over).nonzero().flatten().tolist():
                ended[rows[row]] = input_ids[row]
            over |= done
            if over.all():
                break
            if over.sum() * LEAVING >= len(over):
                input_ids, rows = input_ids[~over], rows[~over]
                model_kwargs, over = _kept_rows(model_kwargs, ~over), over[~over]
            inputs = model.prepare_inputs_for_generation(input_ids, next_sequence_length=1, **model_kwargs)
            outputs = model(**inputs, return_dict=True)
        pad = generation_config._pad_token_tensor
        return nn.utils.rnn.pad_sequence(ended, batch_first=True, padding_value=0 if pad is None else int(pad))


def _processed(scores: torch.Tensor, input_ids: torch.Tensor, processors) -> torch.Tensor:
    """Scores [rows, vocab_size], which may be written to, after all processors."""
    for processor in processors:
        if type(processor) in FORBIDS:
            tokens = FORBIDS[type(processor)](processor, input_ids.shape[1])
            scores = scores if tokens is None else scores.index_fill_(-1, tokens, -torch.inf)
        else:
            scores = processor(input_ids, scores)
    return scores


def _kept_rows(model_kwargs: dict, keep: torch.Tensor) -> dict:
    """Of what goes with each row, the rows of `keep` (mask [rows]); the images were read at the first step."""
    model_kwargs["past_key_values"].batch_select_indices(keep.nonzero().flatten())
    by_row = ("attention_mask", "position_ids", "adapter_ids")
    given = {name: model_kwargs[name] for name in by_row if model_kwargs.get(name) is not None}
    kept = {name: value[keep] for name, value in given.items() if len(value) == len(keep)}  # else one for all rows
    return {**model_kwargs, **kept, "mm_encoder_outputs": None}
