"""(e): transformers' own InstructBLIP with the shapes of a checkpoint of ours, and random weights.

The same depth and width of ViT, the same Q-Former, the same LLM and the same numbers of patches, queries and prompt
tokens; so the same work, by InstructBLIP's own code and `generate`.
"""

from typing import TYPE_CHECKING, Any

import torch


if TYPE_CHECKING:
    from ..configuration_rsmoe import RSMoEConfig

INPUTS = ("pixel_values", "input_ids", "attention_mask", "qformer_input_ids", "qformer_attention_mask")


def instructblip_like(config: "RSMoEConfig", image_size: int, dtype: torch.dtype) -> Any:
    """InstructBLIP with the shapes of a checkpoint and random weights: only its speed and size are measured.

    Its images have `image_size` pixels on a side, as our image processor makes them. Its `generate` takes `INPUTS`.
    """
    from transformers import InstructBlipConfig, InstructBlipForConditionalGeneration

    vision: Any = config.vision_config
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "patch_size")
    shapes = {name: getattr(vision, name) for name in names}
    width = getattr(vision, "intermediate_size", None) or int(vision.hidden_size * vision.mlp_ratio)
    settings: dict[str, Any] = {
        "vision_config": {**shapes, "intermediate_size": width, "image_size": image_size},
        "qformer_config": config.qformer_config.to_dict(),
        "text_config": config.text_config.to_dict(),
        "num_query_tokens": config.num_query_tokens,
        "image_token_index": config.image_token_id,
        "tie_word_embeddings": config.tie_word_embeddings,
    }
    model: Any = InstructBlipForConditionalGeneration._from_config(InstructBlipConfig(**settings), dtype=dtype)
    for name in ("pad_token_id", "eos_token_id"):
        setattr(model.generation_config, name, getattr(config.text_config, name))
    return model.eval()
