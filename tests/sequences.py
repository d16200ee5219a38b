"""Sequences of a batch, each read by the adapter that its token names."""

import torch
from transformers import set_seed


ADAPTERS = [None, 261, 262, 263, 264, 263, None, 264]  # the base LM, the router, theme, object, relation, ...


def rows(adapters=ADAPTERS, images=True, pad=3):
    """Rows of different lengths, padded on the left, each with an image, an adapter's token and some text."""
    set_seed(1)
    texts = [torch.randint(10, 250, (5 + i,)).tolist() for i in range(len(adapters))]
    prompts = [([259] * 4 if images else []) + ([r] if r else []) + text for r, text in zip(adapters, texts)]
    width = max(map(len, prompts)) + pad
    inputs = {
        "input_ids": torch.tensor([[0] * (width - len(p)) + p for p in prompts]),
        "attention_mask": torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts]),
    }
    if images:
        inputs["pixel_values"] = torch.randn(len(adapters), 3, 28, 28)
        inputs["qformer_input_ids"] = torch.randint(5, 60, (len(adapters), 6))
    return inputs


def one(inputs, i, unpadded=True):
    """Row `i` alone, without its padding."""
    alone = {name: value[i : i + 1] for name, value in inputs.items()}
    if unpadded:
        start = int((alone["attention_mask"] == 0).sum())
        for name in ("input_ids", "attention_mask"):
            alone[name] = alone[name][:, start:]
    return alone
