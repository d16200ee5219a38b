"""Decoding of finished sequences by transformers' own `generate`, and what that asks of a model read by adapters."""

from collections.abc import Callable
from typing import Any

import torch
from transformers import DynamicCache
from transformers.generation import GenerationMixin, RepetitionPenaltyLogitsProcessor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from .adapters_rsmoe import RSMoECache
from .arguments_rsmoe import OUTPUT_FIELDS
from .errors_rsmoe import RSMoEError
from .sequences_rsmoe import Tokens


class RSMoEDecodingMixin(GenerationMixin):
    """One decode of `generate`: its sequences are given, and say who reads them."""

    # Of the model that this is mixed into.
    config: Any
    generation_config: Any
    model: Any
    __call__: Any
    get_image_features: Any

    def _decode(self, ids: torch.Tensor, mask: torch.Tensor, features: torch.Tensor | None, **kwargs) -> list[Tokens]:
        """The new tokens of every sequence, up to its end token."""
        unwanted = dict.fromkeys(("return_dict_in_generate", *OUTPUT_FIELDS), False)
        sequences = self._generate_sequences(ids, mask, features, **{**kwargs, **unwanted})
        return [self._trim(sequence, kwargs) for sequence in sequences[:, ids.shape[1] :].tolist()]

    def _generate_sequences(self, ids: torch.Tensor, mask: torch.Tensor, features: torch.Tensor | None, **kwargs):
        """transformers' own `generate` over finished sequences and the image features that belong to them (`None`: a
        cache in `kwargs` holds them)."""
        if features is not None:
            kwargs["mm_encoder_outputs"] = {"image": BaseModelOutputWithPooling(pooler_output=features)}
        return super().generate(input_ids=ids, attention_mask=mask, **kwargs)  # type: ignore[misc]

    def _prefill(self, input_ids, generation_config, model_kwargs, is_first_iteration=True):
        """Private, but there is no public place: transformers copies a sequence for its beams or samples and reads
        every copy. Here the first is read, and what is kept of it copied."""
        copies = max(generation_config.num_beams or 1, generation_config.num_return_sequences or 1)
        images = (model_kwargs.get("mm_encoder_outputs") or {}).get("image")
        cache = model_kwargs.get("past_key_values")
        shares = (
            copies > 1
            and is_first_iteration
            and type(cache) in (DynamicCache, RSMoECache)
            and cache.get_seq_length() == 0
            and model_kwargs.get("inputs_embeds") is None
            and (images is None or self._have_one_image(input_ids, images.pooler_output))
            and not generation_config.prefill_chunk_size
            and not (generation_config.output_attentions or generation_config.output_hidden_states)
        )
        read: Callable = super()._prefill  # type: ignore[misc]
        if not shares:
            return read(input_ids, generation_config, model_kwargs, is_first_iteration)
        first = dict(model_kwargs)
        for name in ("attention_mask", "position_ids", "adapter_ids"):
            if (value := first.get(name)) is not None and len(value) == len(input_ids):
                first[name] = value[::copies]
        if images is not None:
            features = images.pooler_output[::copies]
            first["mm_encoder_outputs"] = {"image": BaseModelOutputWithPooling(pooler_output=features)}
        outputs = read(input_ids[::copies], generation_config, first, is_first_iteration)
        outputs.past_key_values.batch_repeat_interleave(copies)
        outputs.logits = outputs.logits.repeat_interleave(copies, dim=0)
        return outputs

    def _have_one_image(self, input_ids: torch.Tensor, features: torch.Tensor) -> bool:
        """Whether each sequence has the features of one image, neither of several nor of none."""
        counts = (input_ids == self.config.image_token_id).sum(1)
        return len(features) == len(input_ids) and bool((counts == features.shape[1]).all())

    def _read(self, ids: torch.Tensor, mask: torch.Tensor, features: torch.Tensor) -> RSMoECache:
        """The cache after reading these sequences."""
        cache = RSMoECache(config=self.config.get_text_config())
        cache.disposable = True
        self(
            input_ids=ids,
            attention_mask=mask,
            position_ids=(mask.cumsum(-1) - 1).clamp(min=0),
            past_key_values=cache,
            mm_encoder_outputs={"image": BaseModelOutputWithPooling(pooler_output=features)},
            use_cache=True,
            logits_to_keep=1,
        )
        return cache

    def _trim(self, tokens: Tokens, kwargs: dict) -> Tokens:
        stop = {*self._eos_token_ids(kwargs), self._pad_token_id(kwargs)}
        return tokens[: next((place for place, token in enumerate(tokens) if token in stop), len(tokens))]

    def _argument(self, name: str, kwargs: dict, generation_config):
        """Of `kwargs`, else an entry of the given generation config, else of the model's own."""
        value = kwargs.get(name)
        for config in (generation_config, self.generation_config):
            value = getattr(config, name, None) if value is None else value
        return value

    def _eos_token_ids(self, kwargs: dict) -> list[int]:
        eos = self._argument("eos_token_id", kwargs, kwargs.get("generation_config"))
        return [] if eos is None else torch.as_tensor(eos).flatten().tolist()

    def _pad_token_id(self, kwargs: dict) -> int:
        pad = self._argument("pad_token_id", kwargs, kwargs.get("generation_config"))
        return (self._eos_token_ids(kwargs) or [0])[0] if pad is None else int(pad)

    def _get_logits_processor(self, *args, **kwargs):
        """A repetition penalty counts what the text itself has written [our decision]. transformers counts the prompt
        too, where the expert texts stand that are rewritten. The paper's authors generate after embeddings, without a
        prompt of tokens."""
        processors = super()._get_logits_processor(*args, **kwargs)  # type: ignore[misc]
        for each in processors:
            if type(each) is RepetitionPenaltyLogitsProcessor and each not in (kwargs.get("logits_processor") or []):
                each.prompt_ignore_length = kwargs.get("input_ids_seq_length") or 0
        return processors

    def init_continuous_batching(self, *args, **kwargs):
        """Refused, and `generate_batch` with it: its steps hold one token of each request, which does not say which
        expert reads it, and no images.

        Raises:
            RSMoEError: always.
        """
        raise RSMoEError(
            "RS-MoE has no continuous batching: a token alone does not say which expert reads it. Call `generate` "
            "with a batch, or start `rsmoe serve`, whose requests share batches."
        )

    def _prepare_multimodal_encoder_kwargs_for_generation(self, model_kwargs: dict) -> Any:
        """Images to features once, before the sequences are multiplied for beams. transformers' own knows pixels only,
        and drops `image_embeds`."""
        names = ("pixel_values", "image_embeds", "qformer_input_ids", "qformer_attention_mask")
        images = {name: model_kwargs.pop(name) for name in names if model_kwargs.get(name) is not None}
        if "pixel_values" in images or "image_embeds" in images:
            if model_kwargs.get("mm_encoder_outputs"):
                raise ValueError("Give images or mm_encoder_outputs, not both.")
            model_kwargs["mm_encoder_outputs"] = {"image": self.get_image_features(**images, return_dict=True)}
        return model_kwargs

    def _update_model_kwargs_for_generation(self, outputs, model_kwargs, *args, **kwargs):
        """After each step of every search. Logits that are not finite would end all texts at once, and leave them
        empty; minus infinity may be a suppressed token."""
        if not outputs.logits[:, -1].amax().isfinite():
            raise RSMoEError(
                "The model's logits are not finite. Its weights are damaged (assemble or download the checkpoint "
                "again), or float16 is too small for them (load it in bfloat16 or float32)."
            )
        update: Callable = super()._update_model_kwargs_for_generation  # type: ignore[misc]
        return update(outputs, model_kwargs, *args, **kwargs)

    def _expand_inputs_for_generation(
        self,
        expand_size: int = 1,
        is_encoder_decoder: bool = False,
        input_ids: torch.LongTensor | None = None,
        **model_kwargs,
    ):
        """Who reads each sequence is settled here, once for each `generate`, from the whole prompt; later steps carry
        it along, because a sequence's new tokens do not hold its adapter token."""
        if model_kwargs.get("adapter_ids") is None:
            cache, inputs_embeds = (model_kwargs.get(name) for name in ("past_key_values", "inputs_embeds"))
            if isinstance(cache, RSMoECache) and cache.adapter_ids is not None:
                model_kwargs["adapter_ids"] = cache.adapter_ids
            elif input_ids is not None and input_ids.shape[1]:
                model_kwargs["adapter_ids"] = self.model.get_adapter_ids(input_ids)
            elif inputs_embeds is not None:
                model_kwargs["adapter_ids"] = self.model.get_adapter_ids(inputs_embeds=inputs_embeds)
        expand: Callable = super()._expand_inputs_for_generation  # type: ignore[misc]
        return expand(expand_size, is_encoder_decoder, input_ids, **model_kwargs)
