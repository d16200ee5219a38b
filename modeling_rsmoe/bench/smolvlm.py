"""(h): SmolVLM, a small vision-language model that people would use instead, with its published shapes and random
weights, by transformers' own code (Idefics3) and `generate`.

Shapes: config.json of HuggingFaceTB/SmolVLM-256M-Instruct and SmolVLM-500M-Instruct. It sees an image as tiles of
512 x 512 pixels, each of them 64 tokens of the LLM. Its processor's default is 17 of them, 16 and the whole image.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch


SIZES: dict[str, dict[str, int]] = {
    "SmolVLM-256M": {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
    },
    "SmolVLM-500M": {
        "hidden_size": 960,
        "intermediate_size": 2560,
        "num_hidden_layers": 32,
        "num_attention_heads": 15,
        "num_key_value_heads": 5,
    },
}
VISION = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 512,
    "patch_size": 16,
}
VOCAB_SIZE, IMAGE_TOKEN, END_TOKEN, SCALE_FACTOR = 49_280, 49_190, 2, 4
DEFAULT_TILES = 17
TEXT_TOKENS = 16  # of the chat's marks and "Describe the image."; each tile has two marks more


def smolvlm(size: str, dtype: torch.dtype) -> Any:
    """The model with random weights: only its speed and size are measured.

    Args:
        size: one of `SIZES`.
        dtype: of the weights.
    """
    from transformers import Idefics3Config, Idefics3ForConditionalGeneration

    text = {"model_type": "llama", **SIZES[size], "vocab_size": VOCAB_SIZE, "tie_word_embeddings": False}
    text |= {"pad_token_id": END_TOKEN, "max_position_embeddings": 8192}
    config = Idefics3Config(
        text_config=text,
        vision_config=VISION,
        scale_factor=SCALE_FACTOR,
        image_token_id=IMAGE_TOKEN,
        tie_word_embeddings=False,
    )
    model: Any = Idefics3ForConditionalGeneration._from_config(config, dtype=dtype)
    model.generation_config.update(pad_token_id=END_TOKEN, eos_token_id=END_TOKEN)
    return model.eval()


def smolvlm_caption(model: Any, tiles: int, tokens: int) -> Callable[[], Any]:
    """From the tiles of one image to a caption of exactly so many tokens."""
    side, patch = model.config.vision_config.image_size, model.config.vision_config.patch_size
    of_tile = (side // patch // SCALE_FACTOR) ** 2
    # The tokens' values do not matter; no other token than the images' may be theirs.
    ids = [1] * TEXT_TOKENS + [1, *[IMAGE_TOKEN] * of_tile, 1] * tiles
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(1, tiles, 3, side, side, generator=generator).to(model.device, model.dtype)
    input_ids = torch.tensor([ids], device=model.device)
    inputs = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids), "pixel_values": pixels}
    lengths = {"min_new_tokens": tokens, "max_new_tokens": tokens, "do_sample": False}
    return partial(model.generate, **inputs, **lengths)
