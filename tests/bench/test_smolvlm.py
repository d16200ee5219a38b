"""SmolVLM at its published sizes, and its captions at tiny ones."""

from dataclasses import replace

import pytest
import torch

from modeling_rsmoe.bench import smolvlm, speed
from modeling_rsmoe.bench.names import SMOLVLM


TEXT = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
TEXT |= {"num_key_value_heads": 1}
VISION = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.fixture
def tiny(monkeypatch):
    """Both sizes become this one, with tiles of 128 pixels: 4 tokens each."""
    monkeypatch.setattr(smolvlm, "VISION", {**VISION, "image_size": 128, "patch_size": 16})
    for size in smolvlm.SIZES:
        monkeypatch.setitem(smolvlm.SIZES, size, TEXT)


@pytest.mark.parametrize(("size", "millions"), [("SmolVLM-256M", 256), ("SmolVLM-500M", 507)])
def test_sizes_have_the_published_parameters(size, millions):
    with torch.device("meta"):
        model = smolvlm.smolvlm(size, torch.float32)
    assert round(sum(parameter.numel() for parameter in model.parameters()) / 1e6) == pytest.approx(millions, abs=1)


def test_a_tile_is_64_tokens(tiny, monkeypatch):
    monkeypatch.setattr(smolvlm, "VISION", {**VISION, "image_size": 512, "patch_size": 16})
    model = smolvlm.smolvlm("SmolVLM-256M", torch.float32)
    caption = smolvlm.smolvlm_caption(model, 2, 3)
    ids = caption.keywords["input_ids"]
    assert (ids == smolvlm.IMAGE_TOKEN).sum() == 2 * 64 and ids.shape == (1, smolvlm.TEXT_TOKENS + 2 * 66)
    assert caption().shape == (1, ids.shape[1] + 3)


def test_beside_ours(tiny, bench):
    one, default = speed.against_smolvlm(replace(bench, tokens=2, router_tokens=2))
    assert list(one["times"]) == ["full, router, concat", SMOLVLM, "SmolVLM-500M, 1 tile"]
    assert list(default["times"]) == ["SmolVLM-256M, 17 tiles", "SmolVLM-500M, 17 tiles"]
    assert all(len(times["wall"]) == 1 and times["wall"][0] > 0 for times in default["times"].values())
