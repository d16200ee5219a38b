"""What every RS-MoE model class shares."""

import copy

from transformers import PreTrainedModel


class RSMoEPreTrainedModel(PreTrainedModel):
    """Flags for loading, attention backends, checkpointing and compiling."""

    base_model_prefix = "model"
    input_modalities = ["image", "text"]
    supports_gradient_checkpointing = True
    _skip_keys_device_placement = ["past_key_values"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _other_auto_classes: dict[str, str] = {}  # entries of `auto_map` besides the class's own
    # What is small and decides much stays in float32 (docs/how-to/quantization.md): in half precision by the
    # first list, and out of 8 or 4 bits by the second, which quantisers read from the start of a module's name.
    _keep_in_fp32_modules_strict = [
        r"encoder\.qformer",
        r"encoder\.query_tokens",
        r"encoder\.projection",
        # One entry: each must be in every model. The reranker's other tensors are integers.
        r"lora_[AB]|reranker\.(?:image_projection|ngram_embeddings|idf|objects\.projection)",
    ]
    _keep_in_fp32_modules = [r"(?:model\.)?(?:encoder\.(?:qformer|query_tokens|projection)|reranker)"]

    @classmethod
    def is_backend_compatible(cls):
        """No: engines that ask (vLLM, SGLang) feed single tokens of many requests, which do not say who reads them."""
        return False

    def save_pretrained(self, *args, **kwargs):
        """As of every model. What saving writes into a configuration (class, code) goes into a copy: encoder, router
        and experts share theirs with the whole model."""
        config, self.config = self.config, self.config_to_save()
        try:
            return super().save_pretrained(*args, **kwargs)
        finally:
            self.config = config

    def config_to_save(self):
        """The configuration that this model's folder holds."""
        config = copy.deepcopy(self.config)
        if self._auto_class is not None:
            # transformers adds the entry of the saved class; AutoModel is to find the model without a head too.
            config.auto_map = {**(getattr(config, "auto_map", None) or {}), **self._other_auto_classes}
        return config
