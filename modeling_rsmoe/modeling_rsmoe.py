"""RS-MoE: a vision-language encoder, one base LM, an instruction router and several lightweight experts.

Every LLM call is one sequence of a batch, read by one adapter: a special token in `input_ids` says whether the base LM
(no such token), the router or an expert reads the sequence. A batch may mix them, in training as in generation.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, GenerationConfig, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.masking_utils import find_packed_sequence_indices
from transformers.modeling_outputs import BaseModelOutputWithPast, BaseModelOutputWithPooling, CausalLMOutputWithPast
from transformers.modeling_utils import slice_logits_to_keep
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, auto_docstring, torch_compilable_check
from transformers.utils.generic import can_return_tuple

from .adapters_rsmoe import RSMoEAdapterMixin, RSMoECache, check_decoder, detach_adapters
from .base_rsmoe import RSMoEPreTrainedModel
from .configuration_rsmoe import RSMoEConfig
from .encoder_rsmoe import RSMoEVisionLanguageEncoder
from .errors_rsmoe import RSMoEError
from .experts_rsmoe import DECODERS, RSMoEExpert, check_float, decoder_layers
from .generation_rsmoe import RSMoEGenerationMixin
from .low_rank_rsmoe import clear_selection, selected_adapters
from .reranker_rsmoe import RSMoEReranker
from .router_rsmoe import RSMoEInstructionRouter
from .sequences_rsmoe import EXPERT_INPUTS


@dataclass
class RSMoEModelOutputWithPast(BaseModelOutputWithPast):
    """
    Args:
        image_hidden_states (`torch.FloatTensor` of shape `(num_images, num_query_tokens, hidden_size)`, *optional*):
            Features of the images as the base LM reads them. The other fields are those of every decoder.
    """

    image_hidden_states: torch.FloatTensor | None = None


@dataclass
class RSMoECausalLMOutputWithPast(CausalLMOutputWithPast):
    """
    Args:
        loss (`torch.FloatTensor` of shape `(1,)`, *optional*, returned when `labels` is given):
            Next-token cross-entropy over the labels that are not -100 [paper].
        image_hidden_states (`torch.FloatTensor` of shape `(num_images, num_query_tokens, hidden_size)`, *optional*):
            Features of the images as the base LM reads them. The other fields are those of every causal LM.
    """

    image_hidden_states: torch.FloatTensor | None = None


class RSMoEModel(RSMoEAdapterMixin, RSMoEPreTrainedModel):
    """RS-MoE without a language modeling head: encoder, base LM, router and experts."""

    config_class = RSMoEConfig
    base_model_prefix = "model"
    # The processor's `read_input_ids`, once it is attached (`RSMoEProcessor.attach_to`).
    instruction_reader: Callable[[torch.Tensor], dict[str, torch.Tensor]] | None = None

    def __init__(self, config: RSMoEConfig):
        super().__init__(config)
        self.encoder = RSMoEVisionLanguageEncoder(config)
        self.language_model = AutoModel.from_config(config.text_config)
        layers = decoder_layers(self.language_model)
        check_decoder(self.language_model)
        self.router = RSMoEInstructionRouter(config.router_config, layers)
        self.experts = nn.ModuleDict({name: RSMoEExpert(config.expert_config, layers) for name in config.expert_names})
        self.reranker: RSMoEReranker | None = None
        if config.reranker_rank:
            sizes = config.vision_config.hidden_size, config.reranker_rank, config.reranker_buckets
            self.reranker = RSMoEReranker(*sizes, config.reranker_objects, config.reranker_vocab_size)
        self.attach_adapters()
        self.post_init()
        for name in config.expert_names:  # not gathered, as they are no direct children
            expert_plan = self.expert(name).tp_plan
            self.tp_plan.update({f"experts.{name}.{rule}": style for rule, style in expert_plan.items()})

    @property
    def vision_model(self):
        return self.encoder.vision_model

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        try:
            return _reattached(super().from_pretrained(*args, **kwargs))
        except RuntimeError as error:
            if "automatic conversion of the weights" not in str(error):
                raise
            raise RSMoEError(
                "Quantised weights are saved under the names of the whole model: load RSMoEForConditionalGeneration, "
                "whose `.model` this is."
            ) from error

    def set_decoder(self, decoder):
        self.language_model = decoder
        self.attach_adapters()

    def add_reranker(
        self, rank: int, buckets: int, objects: dict[str, list[str]] | None = None, vocab_size: int = 0
    ) -> RSMoEReranker:
        """Put a new reranker in place, to be fitted (`modeling_rsmoe.training.reranker`); arguments as in the
        configuration."""
        config, width = self.config, self.config.vision_config.hidden_size
        self.reranker = reranker = RSMoEReranker(width, rank, buckets, objects, vocab_size)
        config.reranker_rank, config.reranker_buckets = rank, buckets
        config.reranker_objects, config.reranker_vocab_size = objects or {}, vocab_size if objects else 0
        config.confidence_weights = {}  # those of another reranker
        return reranker

    def remove_reranker(self) -> None:
        """Leave the model without one."""
        self.reranker, self.config.reranker_rank = None, 0
        self.config.reranker_objects, self.config.reranker_vocab_size = {}, 0
        self.config.confidence_weights = {}

    def encode_image(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """ViT features of images, to be given as `image_embeds` in place of `pixel_values`.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(num_images, 3, height, width)`):
                As the image processor makes them.

        Returns:
            `torch.FloatTensor` of shape `(num_images, patches, vision width)`.
        """
        return self.encoder.encode_image(pixel_values)

    @can_return_tuple
    @auto_docstring(custom_intro="Features that take the place of the image tokens.")
    def get_image_features(
        self,
        pixel_values: torch.Tensor | None = None,
        image_embeds: torch.Tensor | None = None,
        qformer_input_ids: torch.LongTensor | None = None,
        qformer_attention_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | BaseModelOutputWithPooling:
        r"""
        image_embeds (`torch.FloatTensor` of shape `(num_images, patches, vision width)`, *optional*):
            Output of `encode_image` in place of pixels.
        qformer_input_ids (`torch.LongTensor` of shape `(num_images, qformer_sequence_length)`, *optional*):
            The instruction that each image is read under.
        qformer_attention_mask (`torch.LongTensor` of shape `(num_images, qformer_sequence_length)`, *optional*):
            1 for its real tokens.

        Returns:
            [`BaseModelOutputWithPooling`]: `pooler_output` (num_images, num_query_tokens, hidden_size);
            `last_hidden_state`, `hidden_states` and `attentions` are the ViT's.
        """
        if qformer_input_ids is not None and not torch.compiler.is_compiling():
            vocab_size, largest = self.config.qformer_config.vocab_size, int(qformer_input_ids.max())
            if largest >= vocab_size:
                raise ValueError(
                    f"qformer_input_ids holds the token {largest}, and the Q-Former knows {vocab_size} tokens: "
                    "tokenize instructions by its own tokenizer, the processor's `qformer_tokenizer`."
                )
        vision_outputs = None
        if image_embeds is None and pixel_values is not None:
            vision_model = self.encoder.vision_model
            pixel_values = pixel_values.to(vision_model.dtype)
            vision_outputs = vision_model(pixel_values=pixel_values, return_dict=True, **kwargs)
            image_embeds = vision_outputs.last_hidden_state
        features = self.encoder(
            image_embeds=image_embeds,
            qformer_input_ids=qformer_input_ids,
            qformer_attention_mask=qformer_attention_mask,
        )
        return BaseModelOutputWithPooling(
            last_hidden_state=image_embeds,
            pooler_output=features,
            hidden_states=getattr(vision_outputs, "hidden_states", None),
            attentions=getattr(vision_outputs, "attentions", None),
        )

    def read_instructions(self, input_ids: torch.LongTensor | None) -> dict[str, torch.Tensor]:
        """`qformer_input_ids` and `qformer_attention_mask` of images that came without, by an attached processor."""
        if self.instruction_reader is None or input_ids is None:
            raise ValueError(
                "Images came without qformer_input_ids, the instruction that the Q-Former reads them under: pass all "
                "that the processor returned. For a trainer that drops them: processor.attach_to(model)."
            )
        return self.instruction_reader(input_ids)

    def get_placeholder_mask(
        self, input_ids: torch.LongTensor | None, inputs_embeds: torch.Tensor, image_features: torch.Tensor
    ) -> torch.Tensor:
        """Mask of the image tokens [batch_size, sequence_length, 1]; raises where they are not as many as features."""
        if input_ids is None:
            token = self.get_input_embeddings()(torch.tensor(self.config.image_token_id, device=inputs_embeds.device))
            mask = (inputs_embeds == token).all(-1)
        else:
            mask = input_ids == self.config.image_token_id
        tokens, features = mask.sum(), image_features.shape[0] * image_features.shape[1]
        torch_compilable_check(
            tokens == features,
            f"Image features and image tokens do not match, tokens: {tokens}, features: {features} "
            f"({image_features.shape[0]} images of {image_features.shape[1]}).",
        )
        return mask.unsqueeze(-1).to(inputs_embeds.device)

    def _new_cache(self, use_cache: bool | None) -> RSMoECache | None:
        """What the decoder would make for itself, with a memory of who reads its sequences."""
        use_cache = self.language_model.config.use_cache if use_cache is None else use_cache
        checkpointed = self.training and getattr(self.language_model, "gradient_checkpointing", False)
        return RSMoECache(config=self.language_model.config) if use_cache and not checkpointed else None

    @can_return_tuple
    @auto_docstring
    def forward(  # type: ignore[misc]  # transformers' own idiom: position_ids is a key of TransformersKwargs too
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.Tensor | None = None,
        image_embeds: torch.Tensor | None = None,
        qformer_input_ids: torch.LongTensor | None = None,
        qformer_attention_mask: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        adapter_ids: torch.LongTensor | None = None,
        mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | RSMoEModelOutputWithPast:
        r"""
        input_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
            Each image stands as `num_query_tokens` image tokens; an adapter token selects who reads the sequence.
        image_embeds (`torch.FloatTensor` of shape `(num_images, patches, vision width)`, *optional*):
            Output of `encode_image` in place of pixels.
        qformer_input_ids (`torch.LongTensor` of shape `(num_images, qformer_sequence_length)`, *optional*):
            The instruction that each image is read under.
        qformer_attention_mask (`torch.LongTensor` of shape `(num_images, qformer_sequence_length)`, *optional*):
            1 for its real tokens.
        position_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
            Where they begin anew within a row, without mask and cache, several sequences are packed into it, as
            padding-free collators do: each is read by its own adapter.
        adapter_ids (`torch.LongTensor` of shape `(batch_size,)` or `(batch_size, sequence_length)`, *optional*):
            Who reads each sequence or token (see `get_adapter_ids`), in place of adapter tokens. Without them later
            tokens are read by whom `past_key_values` remembers, if this model made it.
        mm_encoder_outputs (`dict`, *optional*):
            `{"image": get_image_features(...)}` in place of images.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("You must specify exactly one of input_ids or inputs_embeds")
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)  # [batch_size, sequence_length, hidden_size]

        image_outputs = (mm_encoder_outputs or {}).get("image")
        if image_outputs is None and (pixel_values is not None or image_embeds is not None):
            qformer: dict[str, Any] = {"qformer_input_ids": qformer_input_ids}
            qformer["qformer_attention_mask"] = qformer_attention_mask
            if qformer_input_ids is None:
                qformer = self.read_instructions(input_ids)
            image_outputs = self.get_image_features(pixel_values, image_embeds, **qformer, return_dict=True)
        image_features = None
        if image_outputs is not None:
            image_features = cast(Any, image_outputs.pooler_output)
            if isinstance(image_features, (list, tuple)):  # a list after `generate` expanded it for beams
                image_features = torch.stack(image_features)
            image_features = image_features.to(inputs_embeds.device, inputs_embeds.dtype)
            mask = self.get_placeholder_mask(input_ids, inputs_embeds, image_features)
            inputs_embeds = inputs_embeds.masked_scatter(mask, image_features)

        sequence_indices = None
        if position_ids is not None and attention_mask is None and past_key_values is None:
            # transformers' masks find packed rows in this way: a token sees its own sequence alone, but for a cache.
            sequence_indices = find_packed_sequence_indices(position_ids.expand(inputs_embeds.shape[:2]))
        if sequence_indices is not None:
            kwargs["use_cache"] = False
        selected = self._select_adapters(input_ids, adapter_ids, past_key_values, inputs_embeds, sequence_indices)
        adapter_kwargs = self.adapter_kwargs(selected, inputs_embeds.dtype)
        has_begun = past_key_values is not None and past_key_values.get_seq_length() > 0
        if adapter_kwargs and not torch.compiler.is_compiling() and not has_begun:  # once for each sequence
            self.attach_adapters()
        if past_key_values is None:
            past_key_values = self._new_cache(kwargs.get("use_cache"))
        if isinstance(past_key_values, RSMoECache):
            past_key_values.adapter_ids = selected if selected.ndim == 1 else selected[:, -1]
        clear_selection()
        outputs = self.language_model(
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            **adapter_kwargs,
            **kwargs,
        )
        if adapter_kwargs and not selected_adapters():
            raise RSMoEError(
                f"The decoder {self.language_model.config.model_type!r} did not pass keyword arguments on to its "
                f"attention, so no expert could be selected; {DECODERS}."
            )
        clear_selection()
        return RSMoEModelOutputWithPast(
            last_hidden_state=outputs.last_hidden_state,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_hidden_states=image_features,
        )


def _reattached(loaded: Any) -> Any:
    """What `from_pretrained` returned, with its adapters hooked in: quantisers put modules of their own, without our
    hooks, in the place of linear layers. Refuses a `device_map` that offloads router, experts or queries."""
    full_model = loaded[0] if isinstance(loaded, tuple) else loaded
    model = full_model.base_model
    model.attach_adapters()
    devices = {str(device) for device in (getattr(full_model, "hf_device_map", None) or {}).values()}
    if not devices & {"cpu", "disk"}:
        return loaded
    for name, parameter in model.named_parameters():
        if parameter.is_meta and any(module in name for module in ("lora_", "query_tokens", "reranker")):
            raise RSMoEError(
                f"device_map offloads {name}, and what is offloaded comes back for its module's own forward only, "
                "which is never called: give model.encoder, model.router, model.experts and model.reranker a device; "
                "model.language_model.layers may be on disk."
            )
    return loaded


class RSMoEForConditionalGeneration(RSMoEPreTrainedModel, RSMoEGenerationMixin):
    """RS-MoE with a language modeling head: `generate` routes, lets the experts write and fuses their texts."""

    config_class = RSMoEConfig
    base_model_prefix = "model"
    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}
    _other_auto_classes = {
        "AutoModel": "modeling_rsmoe.RSMoEModel",
        "AutoModelForMultimodalLM": "modeling_rsmoe.RSMoEForConditionalGeneration",
    }

    def __init__(self, config: RSMoEConfig):
        super().__init__(config)
        self.model = RSMoEModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        return _reattached(super().from_pretrained(*args, **kwargs))

    def get_image_features(
        self, pixel_values: torch.Tensor | None = None, **kwargs
    ) -> tuple | BaseModelOutputWithPooling:
        return self.model.get_image_features(pixel_values, **kwargs)

    def encode_image(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """As of [`RSMoEModel`]."""
        return self.model.encode_image(pixel_values)

    def add_expert(self, name: str, token_id: int) -> RSMoEExpert:
        """Add an expert that starts at the base LM. All other weights stay as they are, bit for bit.

        Args:
            name (`str`): A Python identifier that no expert has.
            token_id (`int`):
                The token that selects it, from the processor's `add_expert`. A vocabulary that lacks it grows, and the
                new embedding is the mean of the other experts' [our decision]. It is never generated.

        Returns:
            [`RSMoEExpert`]: the new one, the last in `config.expert_names`.

        Raises:
            RSMoEError: a name or a token that is taken or cannot be one.
        """
        config, model = self.config, self.model
        expert_names, expert_token_ids = [*config.expert_names, name], [*config.expert_token_ids, token_id]
        size = max(config.text_config.vocab_size, token_id + 1)
        values = {**config.to_dict(), "expert_names": expert_names, "expert_token_ids": expert_token_ids}
        values["text_config"]["vocab_size"] = size
        type(config).from_dict(values)  # raises where they do not fit
        if size > config.text_config.vocab_size:
            self._grow_vocabulary(size)
        like = next(model.router.parameters())
        expert = RSMoEExpert(config.expert_config, decoder_layers(model.language_model)).to(like.device, like.dtype)
        expert.reset_to(model.language_model)
        config.expert_names, config.expert_token_ids = expert_names, expert_token_ids
        model.experts[name] = expert.train(self.training)
        detach_adapters(model.language_model)
        model.attach_adapters()
        suppressed = self.generation_config.suppress_tokens or []
        self.generation_config.suppress_tokens = [*suppressed, token_id]
        return expert

    @torch.no_grad()
    def _grow_vocabulary(self, size: int) -> None:
        old = self.config.text_config.vocab_size
        self.resize_token_embeddings(size, mean_resizing=False)
        for module in (self.get_input_embeddings(), self.get_output_embeddings()):
            weight = cast(nn.Embedding | nn.Linear, module).weight  # [vocab_size, hidden_size]
            weight[old:] = weight[self.config.expert_token_ids].mean(0)

    def merged_llm(self, expert: str) -> PreTrainedModel:
        """The base LM with the weights of `expert` merged into it, as a causal LM of transformers (a copy).

        It reads text as that expert does; image tokens are only words to it.

        Args:
            expert (`str`): One of `config.expert_names`.

        Raises:
            RSMoEError: an unknown expert; the known ones are named.
        """
        llm = self.plain_llm()
        self.model.expert(expert).merge_into(llm.base_model)
        return llm

    @torch.no_grad()
    def plain_llm(self) -> PreTrainedModel:
        """The base LM alone, as a causal LM of transformers (a copy)."""
        check_float(self.model.language_model)
        config = copy.deepcopy(self.config.text_config)
        config.tie_word_embeddings = self.config.tie_word_embeddings
        if provenance := getattr(self.config, "provenance", None):  # licences travel along
            config.provenance = provenance
        llm = AutoModelForCausalLM.from_config(config, dtype=self.lm_head.weight.dtype)
        llm.base_model.load_state_dict(self.model.language_model.state_dict())
        llm.get_output_embeddings().load_state_dict(self.lm_head.state_dict())
        names = ("bos_token_id", "eos_token_id", "pad_token_id", "suppress_tokens")
        llm.generation_config = GenerationConfig(**{name: getattr(self.generation_config, name) for name in names})
        return llm.eval()

    @can_return_tuple
    @auto_docstring
    def forward(  # type: ignore[misc]  # transformers' own idiom: position_ids is a key of TransformersKwargs too
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.Tensor | None = None,
        image_embeds: torch.Tensor | None = None,
        qformer_input_ids: torch.LongTensor | None = None,
        qformer_attention_mask: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        adapter_ids: torch.LongTensor | None = None,
        mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None = None,
        labels: torch.LongTensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | RSMoECausalLMOutputWithPast:
        r"""
        image_embeds (`torch.FloatTensor` of shape `(num_images, patches, vision width)`, *optional*):
            This and what is not explained here: as of [`RSMoEModel`].
        qformer_input_ids (`torch.LongTensor` of shape `(num_images, qformer_sequence_length)`, *optional*):
            Likewise.
        qformer_attention_mask (`torch.LongTensor` of shape `(num_images, qformer_sequence_length)`, *optional*):
            Likewise.
        position_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
            Likewise.
        adapter_ids (`torch.LongTensor` of shape `(batch_size,)` or `(batch_size, sequence_length)`, *optional*):
            Likewise.
        mm_encoder_outputs (`dict`, *optional*):
            Likewise.
        logits_to_keep (`int` or `torch.Tensor`, *optional*, defaults to 0):
            Logits of the last so many tokens (0: all), or of places (1-dimensional), or of a mask of shape
            `(batch_size, sequence_length)`, whose logits then are `(true tokens, vocab_size)`.
        """
        for name in EXPERT_INPUTS:  # the processor makes them for `generate`
            kwargs.pop(name, None)
        outputs = self.model(
            input_ids=input_ids,
            pixel_values=pixel_values,
            image_embeds=image_embeds,
            qformer_input_ids=qformer_input_ids,
            qformer_attention_mask=qformer_attention_mask,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            adapter_ids=adapter_ids,
            mm_encoder_outputs=mm_encoder_outputs,
            **kwargs,
        )
        hidden_states = outputs.last_hidden_state
        if isinstance(logits_to_keep, torch.Tensor) and logits_to_keep.ndim == 2:
            hidden_states = hidden_states[logits_to_keep]
        else:
            # Not contiguous, a slice makes torch copy the head's weight for every row.
            hidden_states = slice_logits_to_keep(hidden_states, logits_to_keep).contiguous()
        logits = self.lm_head(hidden_states)
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=logits, labels=labels, vocab_size=self.config.text_config.vocab_size, **kwargs
            )
        return RSMoECausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_hidden_states=outputs.image_hidden_states,
        )


__all__ = ["RSMoEForConditionalGeneration", "RSMoEModel", "RSMoEPreTrainedModel"]
