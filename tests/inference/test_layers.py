"""Llama's layers in fewer operations: the numbers are transformers', and whatever looks into a layer finds its own."""

import copy

import pytest
import torch
from torch import nn
from transformers import DynamicCache
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from modeling_rsmoe.hub.assemble import round_to_half
from modeling_rsmoe.inference import layers
from modeling_rsmoe.inference.decoding import _RoomyLayer
from modeling_rsmoe.inference.layers import FastDecoderLayer, remove_fast_kernels, use_fast_kernels
from modeling_rsmoe.low_rank_rsmoe import stacked_adapters

from ..sequences import rows
from ..tiny import tiny_config, tiny_model


KERNELS = ["columns", *(["half"] if "fbgemm" in torch.backends.quantized.supported_engines else [])]
ADAPTERS = {"base LM": [0, 0, 0], "experts": [2, 4, 3], "both": [0, 2, 1]}


@pytest.fixture
def attended(monkeypatch):
    """The lengths that the fast layers computed."""
    lengths = []
    attend = FastDecoderLayer._attend

    def counted(self, attention, projected, *args):
        lengths.append(projected.shape[1])
        return attend(self, attention, projected, *args)

    monkeypatch.setattr(FastDecoderLayer, "_attend", counted)
    return lengths


def fast_and_plain(kernels="columns", **config):
    """A model with fast layers, and the same one as it was."""
    model = tiny_model(**config)
    if kernels == "half":
        round_to_half(model.model.language_model, model.lm_head)
    plain = copy.deepcopy(model)
    use_fast_kernels(model, kernels)
    assert {type(layer) for layer in model.model.language_model.layers} == {FastDecoderLayer}
    return model, plain


def logits(model, adapters, steps=3):
    """Of a padded prompt and of some steps after it."""
    ids = torch.randint(3, 250, (len(adapters), 6 + steps), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[0, :2] = 0
    cache, found = DynamicCache(config=model.config.text_config), []
    with torch.no_grad(), stacked_adapters():
        for start, end in ((0, 6), *((place, place + 1) for place in range(6, 6 + steps))):
            found.append(
                model(
                    input_ids=ids[:, start:end],
                    attention_mask=mask[:, :end],
                    position_ids=(mask.cumsum(-1) - 1).clamp(min=0)[:, start:end],
                    past_key_values=cache,
                    adapter_ids=torch.tensor(adapters),
                ).logits
            )
    return torch.cat(found, dim=1)[mask.bool()]


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("adapters", ADAPTERS.values(), ids=ADAPTERS)
def test_numbers_are_transformers(kernels, attention, adapters, attended):
    model, plain = fast_and_plain(kernels)
    for each in (model, plain):
        each.set_attn_implementation(attention)
    torch.testing.assert_close(logits(model, adapters), logits(plain, adapters), atol=1e-5, rtol=1e-5)
    assert set(attended) == {6, 1}  # prompt and steps
    other = logits(model, [adapter + 1 for adapter in adapters[:1]] + adapters[1:])
    assert (other - logits(model, adapters)).abs().max() > 1e-3  # the adapters are read


def test_an_adapter_that_lacks_a_layer():
    """Its columns are left out there, of a joined product as of a single one."""
    config = tiny_config(expert_config={"target_modules": ["v_proj", "up_proj"]})
    model, plain = fast_and_plain(config=config)
    for adapters in ([1, 2, 3], [3, 3], [0, 1]):
        torch.testing.assert_close(logits(model, adapters), logits(plain, adapters), atol=1e-5, rtol=1e-5)


def test_whoever_looks_into_a_layer_finds_transformers_own(attended):
    """Hooks, attentions that are asked for, a layer that was replaced, `full` experts, training."""
    model, _ = fast_and_plain()
    attention = model.model.language_model.layers[0].self_attn
    seen = []
    handle = attention.register_forward_hook(lambda *args: seen.append(args))
    expected = logits(model, [0, 2, 3])
    assert len(seen) == 4 and len(attended) == 4  # the other layer stays fast
    handle.remove()
    attention.v_proj = nn.Sequential(attention.v_proj)  # as PEFT wraps it
    attended.clear()
    torch.testing.assert_close(logits(model, [0, 2, 3]), expected, atol=1e-5, rtol=1e-5)
    assert len(attended) == 4
    attended.clear()
    with_full, plain = fast_and_plain(config=tiny_config(expert_config={"expert_type": "full"}))
    torch.testing.assert_close(logits(with_full, [0, 2, 3]), logits(plain, [0, 2, 3]), atol=1e-5, rtol=1e-5)
    model.train()
    model(**rows()).logits.sum().backward()
    assert attended == []


def test_removed_again(attended):
    model, plain = fast_and_plain()
    remove_fast_kernels(model)
    assert {type(layer) for layer in model.model.language_model.layers} == {LlamaDecoderLayer}
    assert type(model.lm_head) is nn.Linear
    assert not any(type(hook) is layers.Refresh for hook in model._forward_pre_hooks.values())
    assert torch.equal(logits(model, [0, 2, 3]), logits(plain, [0, 2, 3])) and attended == []
    assert use_fast_kernels(model, "columns") == 15


def test_other_decoders_keep_their_layers():
    model = tiny_model()
    for layer in model.model.language_model.layers:
        layer.mlp = nn.Sequential(layer.mlp)
    use_fast_kernels(model, "columns")
    assert {type(layer) for layer in model.model.language_model.layers} == {LlamaDecoderLayer}


def test_a_cache_with_room():
    """What is written, cropped and selected is what transformers' layer holds, over several rooms."""
    roomy, plain = DynamicCache(), DynamicCache()
    generator = torch.Generator().manual_seed(0)
    moved = set()
    for step in range(80):
        keys, values = torch.randn(2, 4 if step < 40 else 2, 3, 1 + step % 2, 5, generator=generator)
        for cache in (roomy, plain):
            cache.update(keys, values, 0)
            if step == 0:
                roomy.layers[0].__class__ = _RoomyLayer
            if step == 20:
                cache.crop(-3)
            if step == 39:
                cache.batch_select_indices(torch.tensor([0, 3]))
        moved.add(roomy.layers[0].keys.data_ptr())
        assert torch.equal(roomy.layers[0].keys, plain.layers[0].keys)
        assert torch.equal(roomy.layers[0].values, plain.layers[0].values)
    assert len(moved) < 10
