"""(e): transformers' own InstructBLIP with the shapes of a checkpoint of ours, and random weights.

The same depth and width of ViT, the same Q-Former, the same LLM and the same numbers of patches, queries and prompt
tokens; so the same work, by InstructBLIP's own code and `generate`.
"""

from typing import TYPE_CHECKING, Any

import torch
from transformers import InstructBlipConfig, InstructBlipForConditionalGeneration

from .workbench import Workbench


if TYPE_CHECKING:
    from ..configuration_rsmoe import RSMoEConfig

INPUTS = ("pixel_values", "input_ids", "attention_mask", "qformer_input_ids", "qformer_attention_mask")


def instructblip_like(own: "RSMoEConfig", image_size: int, dtype: torch.dtype) -> InstructBlipForConditionalGeneration:
    """Random weights: only its speed and size are looked at.

    Args:
        image_size: side of the pictures that the image processor makes, in pixels.
    """
    ours = own.vision_config
    vision = {
        "hidden_size": ours.hidden_size,
        "num_hidden_layers": ours.num_hidden_layers,
        "num_attention_heads": ours.num_attention_heads,
        "intermediate_size": getattr(ours, "intermediate_size", None) or int(ours.hidden_size * ours.mlp_ratio),
        "patch_size": ours.patch_size,
        "image_size": image_size,
    }
    settings: dict[str, Any] = {"tie_word_embeddings": own.tie_word_embeddings}
    config = InstructBlipConfig(
        vision_config=vision,
        qformer_config=own.qformer_config.to_dict(),
        text_config=own.text_config.to_dict(),
        num_query_tokens=own.num_query_tokens,
        image_token_index=own.image_token_id,
        **settings,
    )
    model: Any = InstructBlipForConditionalGeneration._from_config(config, dtype=dtype)
    for name in ("pad_token_id", "eos_token_id"):
        setattr(model.generation_config, name, getattr(own.text_config, name))
    return model.eval()


class InstructBlip:
    """One caption by InstructBLIP's `generate`, beside one by the base LM alone, from the same tensors."""

    def __init__(self, bench: Workbench):
        model: Any = bench.model
        inputs = bench.inputs(1, expert_inputs=False)
        self.bench, self.inputs = bench, {name: inputs[name] for name in INPUTS}
        size = self.inputs["pixel_values"].shape[-1]
        self.model: Any = instructblip_like(model.config, size, model.dtype)
        self.model.to(model.device)

    @torch.no_grad()
    def theirs(self) -> torch.Tensor:
        return self.model.generate(**self.inputs, **self.bench.lengths)

    @torch.no_grad()
    def ours(self) -> torch.Tensor:
        return self.bench.model.generate(**self.inputs, **self.bench.lengths)
