"""The same model in other shapes: more and fewer experts, image tokens; the model itself stays as it was."""

from dataclasses import replace

import pytest
import torch

from modeling_rsmoe.bench import growth
from modeling_rsmoe.bench.growth import with_experts, with_image_tokens
from modeling_rsmoe.bench.names import BASE, FULL, TEMPLATE
from modeling_rsmoe.bench.workbench import made_images


@pytest.fixture
def untouched(bench):
    """Nothing of the bench may have changed, in shape or in what it says."""
    before = bench.full()()
    names = {name: tensor.shape for name, tensor in bench.model.state_dict().items()}
    yield
    assert {name: tensor.shape for name, tensor in bench.model.state_dict().items()} == names
    assert torch.equal(bench.full()(), before) and bench.processor.experts == ["theme", "object", "relation"]
    assert "<expert4>" not in bench.processor.tokenizer.get_vocab()


@pytest.mark.parametrize("count", [1, 3, 5])
def test_with_experts(bench, untouched, count):
    variant = with_experts(bench, count)
    inputs = variant.inputs(1, expert_inputs=True)
    assert inputs["expert_input_ids"].shape[::2] == (1, count)
    said = variant.full_of(inputs)(return_dict_in_generate=True)
    assert said.expert_sequences.shape == (1, count, 4)
    first = bench.full_of(bench.inputs(1, expert_inputs=True))(return_dict_in_generate=True)
    shared = min(3, count)
    assert torch.equal(said.expert_sequences[:, :shared], first.expert_sequences[:, :shared])
    gate = variant.model.model.get_adapter_gate(torch.tensor([0]))
    assert gate.shape[-1] == 2 + 4 * count  # the router's r and each expert's: what a step computes


def test_weights_are_shared(bench, untouched):
    variant = with_experts(bench, 2)
    layers = [model.model.language_model.layers[0].mlp.up_proj.weight for model in (variant.model, bench.model)]
    assert layers[0] is layers[1]


@pytest.mark.parametrize("count", [2, 4, 9])
def test_with_image_tokens(bench, untouched, count):
    variant = with_image_tokens(bench, count)
    ids = variant.inputs(1, expert_inputs=False)["input_ids"]
    assert int((ids == variant.model.config.image_token_id).sum()) == count
    assert variant.base()().shape[1] == ids.shape[1] + 4


@pytest.mark.slow
def test_curves(bench, monkeypatch, untouched):
    for name, few in (("EXPERTS", (1, 4)), ("TOKENS", (2, 3)), ("IMAGE_TOKENS", (2, 3))):
        monkeypatch.setattr(growth, name, few)
    threads = torch.get_num_threads()
    groups, _ = growth.growth(replace(bench, tokens=2, router_tokens=2, images=made_images(1)))
    assert [one["key"] for one in groups] == [
        "growth: experts",
        "growth: tokens",
        "growth: image tokens",
        "growth: threads",
    ]
    assert groups[0]["x"] == {
        BASE: 0,
        **{f"{mode}, {n} expert{'s' if n > 1 else ''}": n for n in (1, 4) for mode in (FULL, TEMPLATE)},
    }
    assert groups[1]["x"][f"{FULL}, 3 tokens"] == 3 and all(one["x"].keys() == one["times"].keys() for one in groups)
    assert groups[3]["x"][f"{FULL}, 1 thread"] == 1 and torch.get_num_threads() == threads
