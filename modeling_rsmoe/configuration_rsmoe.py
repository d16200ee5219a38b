"""Configuration of RS-MoE: vision encoder, Q-Former, base LM, instruction router and experts."""

import math
from typing import Any, Literal, cast

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec
from transformers.models.instructblip.configuration_instructblip import InstructBlipQFormerConfig

from .errors_rsmoe import RSMoEError


EXPERT_NAMES = ("theme", "object", "relation")  # the paper's three sub-tasks; three are best in its ablation [paper]
MAX_EXPERTS = 8
LINEAR_LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
# What a confidence is computed from, by what a text is (`confidence_rsmoe.py`).
STATEMENT, ANSWER, BIAS = "statement", "answer", "bias"
CONFIDENCE_SIGNALS = {STATEMENT: ("fit", "presence"), ANSWER: ("likelihood", "least_likelihood")}
# An expert's name becomes an attribute of an nn.ModuleDict and a token: these would shadow the container's own
# methods.
RESERVED_NAMES = frozenset(
    {"router", "image", "prompt", "keys", "values", "items", "pop", "clear", "update", "type", "training"}
)


class _ChecksModelType(PreTrainedConfig):
    """Refuses another model's configuration: transformers would warn and fill in defaults, several GB of weights."""

    @classmethod
    def from_dict(cls, config_dict, **kwargs):
        model_type = config_dict.get("model_type", cls.model_type)
        if model_type != cls.model_type:
            name = kwargs.get("name_or_path") or config_dict.get("_name_or_path") or "this checkpoint"
            raise RSMoEError(
                f"{name} is of model type {model_type!r}, expected {cls.model_type!r}: give an RS-MoE checkpoint."
            )
        return super().from_dict(config_dict, **kwargs)


@strict
class RSMoEExpertConfig(_ChecksModelType):
    r"""
    How one expert differs from the base LM. Saved by itself (with `text_config`), it describes an expert's own
    folder.

    Args:
        expert_type (`str`, *optional*, defaults to `"lora"`):
            `"lora"`: low-rank weights over the shared, frozen base LM [our decision: memory of one LLM]. `"full"`:
            its own copy of the decoder's layers, as in the paper's text [paper]. Embeddings and `lm_head` are shared
            in both.
        r (`int`, *optional*, defaults to 8): Rank of the low-rank weights [paper: 8 in the authors' Q-Former code].
        lora_alpha (`float`, *optional*, defaults to 16.0):
            The low-rank product is scaled by `lora_alpha / r` [paper: 16, same place].
        target_modules (`list[str]`, *optional*):
            Leaf names of the linear layers that get low-rank weights, in this order. Defaults to all linear layers of
            a Llama-style decoder layer [our decision].
        text_config (`PreTrainedConfig`, *optional*):
            The decoder that the weights belong to. Inside an [`RSMoEConfig`] it is that config's own.
    """

    model_type = "rsmoe_expert"
    base_config_key = "expert_config"

    expert_type: Literal["lora", "full"] = "lora"
    r: int = 8
    lora_alpha: float | int = 16.0
    target_modules: list[str] | tuple[str, ...] = LINEAR_LAYERS
    text_config: Any = None

    def __post_init__(self, **kwargs):
        # No sub-config in transformers' sense: attention settings of the decoder are those of the whole model's
        # `text_config`.
        if isinstance(self.text_config, dict):
            self.text_config = AutoConfig.for_model(**self.text_config)
        super().__post_init__(**kwargs)
        field = self.base_config_key
        self.target_modules = list(self.target_modules)
        if self.r < 1:
            raise RSMoEError(f"{field}.r is {self.r}; give a rank of 1 or more.")
        if not 0 < self.lora_alpha < float("inf"):
            raise RSMoEError(f"{field}.lora_alpha is {self.lora_alpha}; give a number above 0.")
        if not self.target_modules or len(set(self.target_modules)) != len(self.target_modules):
            raise RSMoEError(
                f"{field}.target_modules is {self.target_modules}; name each linear layer once, and at least one."
            )


@strict
class RSMoERouterConfig(RSMoEExpertConfig):
    """The instruction router's weights over the base LM: same fields as [`RSMoEExpertConfig`]."""

    model_type = "rsmoe_router"
    base_config_key = "router_config"


@strict
class RSMoEConfig(_ChecksModelType):
    r"""
    Configuration of [`RSMoEForConditionalGeneration`].

    Args:
        vision_config (`PreTrainedConfig`, *optional*):
            Any transformers vision encoder whose output is a sequence of patch features (`instructblip_vision_model`
            as in the paper, `dinov2`, `vit`, `clip_vision_model`, `siglip_vision_model`, ...).
        qformer_config (`InstructBlipQFormerConfig`, *optional*):
            The instruction-aware Q-Former [paper: InstructBLIP's].
        text_config (`PreTrainedConfig`, *optional*):
            The decoder of the base LM (Llama, Qwen2, Qwen3, Mistral, SmolLM3, ...).
        router_config (`RSMoERouterConfig`, *optional*):
            Weights of the instruction router, which writes one text prompt for each expert [paper].
        expert_config (`RSMoEExpertConfig`, *optional*): Weights of every expert.
        expert_names (`list[str]`, *optional*, defaults to `["theme", "object", "relation"]`):
            One expert for each name, in the order in which their texts are fused; 1 to 8 names [paper: three].
        num_query_tokens (`int`, *optional*, defaults to 32):
            Query tokens of the Q-Former: the image tokens of a sequence [paper].
        image_token_id (`int`, *optional*):
            The token `<image>`. It and the next ones are by default the last ids of the vocabulary, in this order.
        prompt_token_id (`int`, *optional*): The token `<prompt>`, in whose place a prompt or an expert text goes.
        router_token_id (`int`, *optional*): The token `<router>`.
        expert_token_ids (`list[int]`, *optional*): One token for each expert.
        sentence_end_token_ids (`list[int]`, *optional*):
            Tokens that end a sentence: fusion by `concat` drops a sentence that stands before. Empty: whole texts are
            compared.
        reranker_rank (`int`, *optional*, defaults to 0):
            Rank of the reranker, which fuses by `rerank` [our decision]. 0: the model has none.
        reranker_buckets (`int`, *optional*, defaults to 4096): Number of hashed n-grams that the reranker knows.
        reranker_objects (`dict[str, list[str]]`, *optional*):
            Objects that the reranker can tell to be in an image or not, each with the words that mention it
            [our decision]. Empty: it judges sentences by their n-grams alone.
        reranker_vocab_size (`int`, *optional*, defaults to 0):
            Of the LLM's tokenizer, by which the reranker reads the objects' words; 0 without objects.
        confidence_weights (`dict[str, dict[str, float]]`, *optional*):
            How likely texts are to be right, as `rsmoe train confidence` fits it [our decision]: under `"statement"`
            and `"answer"` the weight of each signal (`CONFIDENCE_SIGNALS`) and `"bias"`. Empty: no text has a
            confidence.
        tie_word_embeddings (`bool`, *optional*, defaults to `False`):
            Whether the head shares the weights of the embeddings; true where `text_config` says so.

    Example:

    ```python
    >>> from modeling_rsmoe import RSMoEConfig, RSMoEForConditionalGeneration

    >>> small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    >>> config = RSMoEConfig(
    ...     vision_config={"model_type": "dinov2", "image_size": 28, "patch_size": 14, **small},
    ...     qformer_config=small,
    ...     text_config={"model_type": "llama", "vocab_size": 256, **small},
    ... )
    >>> model = RSMoEForConditionalGeneration(config)
    ```
    """

    model_type = "rsmoe"
    sub_configs_defaults = {
        "vision_config": SubConfigSpec(config_class=AutoConfig, model_type="instructblip_vision_model"),
        "qformer_config": SubConfigSpec(config_class=InstructBlipQFormerConfig),
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="llama"),
        "router_config": SubConfigSpec(config_class=RSMoERouterConfig),
        "expert_config": SubConfigSpec(config_class=RSMoEExpertConfig),
    }

    vision_config: Any = None
    qformer_config: Any = None
    text_config: Any = None
    router_config: Any = None
    expert_config: Any = None
    expert_names: list[str] | tuple[str, ...] = EXPERT_NAMES
    num_query_tokens: int = 32
    image_token_id: int | None = None
    prompt_token_id: int | None = None
    router_token_id: int | None = None
    expert_token_ids: list[int] | tuple[int, ...] | None = None
    sentence_end_token_ids: list[int] | tuple[int, ...] = ()
    reranker_rank: int = 0
    reranker_buckets: int = 4096
    reranker_objects: dict[str, list[str]] | None = None
    reranker_vocab_size: int = 0
    confidence_weights: dict[str, dict[str, float]] | None = None
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        self.expert_names = list(self.expert_names)
        self.sentence_end_token_ids = list(self.sentence_end_token_ids)
        self.qformer_config.encoder_hidden_size = getattr(self.vision_config, "hidden_size", None) or 0
        # The decoder's own config says whether its head is tied, as in transformers' LLaVA.
        self.tie_word_embeddings = self.tie_word_embeddings or self.text_config.tie_word_embeddings
        # Router and experts belong to the one decoder; `to_dict` writes it once.
        self.router_config.text_config = self.text_config
        self.expert_config.text_config = self.text_config
        self._check_modules()
        self._check_confidence()
        self._check_names()
        self._set_token_ids()

    def _check_modules(self) -> None:
        if not getattr(self.vision_config, "hidden_size", None) or not hasattr(self.vision_config, "patch_size"):
            raise RSMoEError(
                f"vision_config.model_type {self.vision_config.model_type!r} has no hidden_size or no patch_size; "
                "choose an encoder with patch features, such as 'dinov2', 'vit', 'clip_vision_model' or "
                "'siglip_vision_model'."
            )
        if self.qformer_config.hidden_size % self.qformer_config.num_attention_heads:
            raise RSMoEError(
                f"qformer_config.hidden_size {self.qformer_config.hidden_size} is not a multiple of "
                f"qformer_config.num_attention_heads {self.qformer_config.num_attention_heads}."
            )
        if self.text_config.is_encoder_decoder:
            raise RSMoEError(
                f"text_config.model_type {self.text_config.model_type!r} is an encoder-decoder; choose a decoder."
            )
        if self.num_query_tokens < 1:
            raise RSMoEError(f"num_query_tokens is {self.num_query_tokens}; give 1 or more.")
        if self.reranker_rank < 0 or self.reranker_buckets < 1:
            raise RSMoEError(
                f"reranker_rank is {self.reranker_rank} and reranker_buckets {self.reranker_buckets}; give a rank of "
                "0 (no reranker) or more, and 1 bucket or more."
            )
        objects = self.reranker_objects = self.reranker_objects or {}
        if objects and (not self.reranker_rank or self.reranker_vocab_size < 1 or not all(objects.values())):
            raise RSMoEError(
                f"reranker_objects names {', '.join(objects)}, with reranker_rank {self.reranker_rank} and "
                f"reranker_vocab_size {self.reranker_vocab_size}: objects need words, a reranker, and the size of the "
                "tokenizer's vocabulary."
            )

    def _check_confidence(self) -> None:
        fitted = self.confidence_weights = self.confidence_weights or {}
        for kind, weights in fitted.items():
            names = {*CONFIDENCE_SIGNALS.get(kind, ()), BIAS}
            if (
                kind not in CONFIDENCE_SIGNALS
                or set(weights) != names
                or not all(map(math.isfinite, weights.values()))
            ):
                raise RSMoEError(
                    f"confidence_weights: {kind} has {weights}; known are {', '.join(CONFIDENCE_SIGNALS)}, each with "
                    "a finite weight for every signal and for bias. Fit them by `rsmoe train confidence`."
                )
        if STATEMENT in fitted and not self.reranker_objects:
            raise RSMoEError(
                "confidence_weights of statements need a reranker that knows objects (reranker_objects); fit it by "
                "`rsmoe train reranker` first."
            )

    def _check_names(self) -> None:
        names = self.expert_names
        if not 1 <= len(names) <= MAX_EXPERTS:
            raise RSMoEError(f"expert_names has {len(names)} names; give 1 to {MAX_EXPERTS}.")
        for name in names:
            if not name.isidentifier() or name.startswith("_") or name in RESERVED_NAMES:
                raise RSMoEError(
                    f"expert_names: {name!r} cannot name an expert; use a Python identifier other than "
                    f"{sorted(RESERVED_NAMES)}."
                )
        if len(set(names)) != len(names):
            raise RSMoEError(f"expert_names is {names}; each name may stand once.")

    def _set_token_ids(self) -> None:
        vocab_size, count = self.text_config.vocab_size, len(self.expert_names)
        first = vocab_size - 3 - count
        defaults = {"image_token_id": first, "prompt_token_id": first + 1, "router_token_id": first + 2}
        for field, value in defaults.items():
            if getattr(self, field) is None:
                setattr(self, field, value)
        if self.expert_token_ids is None:
            self.expert_token_ids = list(range(vocab_size - count, vocab_size))
        self.expert_token_ids = list(self.expert_token_ids)
        if len(self.expert_token_ids) != count:
            raise RSMoEError(
                f"expert_token_ids has {len(self.expert_token_ids)} ids for {count} expert_names; give one for each."
            )
        ids = cast(list[int], [self.image_token_id, self.prompt_token_id, *self.adapter_token_ids])
        if len(set(ids)) != len(ids) or min(ids) < 0 or max(ids) >= vocab_size:
            raise RSMoEError(
                f"image_token_id, prompt_token_id, router_token_id and expert_token_ids are {ids}; they must differ "
                f"from each other and lie in the vocabulary of text_config.vocab_size {vocab_size}."
            )

    @property
    def adapter_token_ids(self) -> list[int]:
        """The tokens that select who reads a sequence: the router's, then each expert's, in their order."""
        return cast(list[int], [self.router_token_id, *(self.expert_token_ids or ())])

    def to_dict(self) -> dict[str, Any]:
        output = super().to_dict()
        for name in ("router_config", "expert_config"):
            output[name]["text_config"] = None  # the decoder's configuration stands once, in `text_config`
        return output


@strict
class RSMoEEncoderConfig(RSMoEConfig):
    """Configuration in the folder of an [`RSMoEVisionLanguageEncoder`] that is saved alone: the full model's, under a
    type of its own."""

    model_type = "rsmoe_encoder"


__all__ = ["RSMoEConfig", "RSMoEEncoderConfig", "RSMoEExpertConfig", "RSMoERouterConfig"]
