"""Decoding on a processor says what transformers' own decoding says: a batch that shrinks, products of few rows."""

import pytest
import torch
import torch.nn.functional as F
from modeling_rsmoe.decoding_rsmoe import FewRowsLinear, HalfWeightLinear, fast_products
from torch import nn
from transformers import DynamicCache

from modeling_rsmoe import decoding_rsmoe
from modeling_rsmoe.generation_rsmoe import LOOKUP
from modeling_rsmoe.hub.assemble import round_to_half

from .test_modeling import rows
from .tiny import tiny_model, tiny_processor


ENDS = list(range(2, 259, 9))  # one token in nine ends a text, so that rows end at different steps


@pytest.fixture
def model():
    return tiny_model()


@pytest.fixture
def batches(model, monkeypatch):
    """How many rows each step of the decoder had."""
    seen = []
    forward = model.model.language_model.forward

    def counted(*args, inputs_embeds, **kwargs):
        seen.append(len(inputs_embeds))
        return forward(*args, inputs_embeds=inputs_embeds, **kwargs)

    monkeypatch.setattr(model.model.language_model, "forward", counted)
    return seen


@pytest.fixture
def plain(monkeypatch):
    """transformers' own search and torch's own products."""

    def run(generate):
        with monkeypatch.context() as patched:
            patched.setattr(decoding_rsmoe, "ROW_BY_ROW", set())
            patched.setattr(decoding_rsmoe, "is_slow", lambda layer: False)
            return generate()

    return run


@pytest.mark.parametrize("settings", [{}, {"no_repeat_ngram_size": 2}, {"min_new_tokens": 3}], ids=str)
def test_rows_that_have_ended_leave(model, batches, plain, settings):
    inputs = rows()
    settings = {"max_new_tokens": 20, "eos_token_id": ENDS, **settings}
    expected = plain(lambda: model.generate(**inputs, **settings))
    whole = list(batches)
    batches.clear()
    assert torch.equal(model.generate(**inputs, **settings), expected)
    assert set(whole) == {len(expected)} and len(batches) == len(whole)
    assert batches == sorted(batches, reverse=True) and len(set(batches)) > 2


def test_rows_stay_where_others_may_be_counted(model, batches):
    """A constraint that is told which row it is at, a penalty with a length for each row, a cache that the caller keeps, scores."""
    inputs, settings = rows(), {"max_new_tokens": 20, "eos_token_id": ENDS}
    count = len(inputs["input_ids"])
    told = set()

    def allowed(row, ids):
        told.add(row)
        return list(range(259))

    model.generate(**inputs, **settings, prefix_allowed_tokens_fn=allowed)
    model.generate(**inputs, **settings, repetition_penalty=1.3)
    cache = DynamicCache()
    model.generate(**inputs, **settings, past_key_values=cache)
    found = model.generate(**inputs, **settings, return_dict_in_generate=True, output_scores=True)
    assert set(batches) == {count} and told == set(range(count))
    assert cache.layers[0].keys.shape[0] == count
    assert {len(scores) for scores in found.scores} == {count}


@pytest.mark.parametrize("router_mode", ["generated", "template"])
@pytest.mark.parametrize("fusion", ["concat", "rewrite"])
def test_whole_path_says_the_same(model, plain, monkeypatch, router_mode, fusion):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    images = list(torch.randint(0, 255, (2, 3, 40, 50), generator=torch.Generator().manual_seed(4)).to(torch.uint8))
    inputs = tiny_processor()(images=images, text=["Describe.", "Where?"], return_tensors="pt")
    settings = {"router_mode": router_mode, "fusion": fusion, "return_dict_in_generate": True}
    settings |= {"eos_token_id": ENDS}
    model.generation_config.eos_token_id = ENDS
    expected = plain(lambda: model.generate(**inputs, **settings))
    got = model.generate(**inputs, **settings)
    for name in ("sequences", "router_prompts", "expert_sequences"):
        assert torch.equal(got[name], expected[name]), name


def test_composing_looks_up_in_the_parts(model, monkeypatch):
    """One image, greedily: several tokens in a step, and the same text. Other decoding is left as it is."""
    image = torch.randint(0, 255, (3, 40, 50), generator=torch.Generator().manual_seed(4)).to(torch.uint8)
    inputs = tiny_processor()(images=image, text="Describe.", return_tensors="pt")
    asked = []
    generate_rows = model._generate_rows

    def told(rows, features, **kwargs):
        asked.append(kwargs.get("prompt_lookup_num_tokens"))
        return generate_rows(rows, features, **kwargs)

    monkeypatch.setattr(model, "_generate_rows", told)
    found = model.generate(**inputs, fusion="rewrite")
    assert asked == [None, None, LOOKUP]
    for other in ({"num_beams": 2}, {"do_sample": True}, {"cache_implementation": "static"}, {"use_cache": False}):
        asked.clear()
        model.generate(**inputs, fusion="rewrite", **other)
        assert set(asked) == {None}, other
    with monkeypatch.context() as patched:
        patched.setattr(model, "_is_plain_greedy", lambda kwargs: False)
        assert torch.equal(model.generate(**inputs, fusion="rewrite"), found)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 7, 8, 9])
@pytest.mark.parametrize("shape", [(24, 40), (24, 41), (40, 24)], ids=str)
def test_product_of_few_rows(count, shape, monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    layer = nn.Linear(*shape, bias=False)
    x = torch.randn(count, 1, shape[0])
    with torch.no_grad(), fast_products(layer):
        assert type(layer) is FewRowsLinear
        got = layer(x)
    assert type(layer) is nn.Linear and got.shape == (count, 1, shape[1]) and got.is_contiguous()
    assert torch.allclose(got, F.linear(x, layer.weight), atol=1e-6)


def test_layers_are_torchs_own_afterwards(monkeypatch):
    """After an error too, and where a call is inside another; half precision and biases keep torch's product."""
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    layer, half = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False).bfloat16()
    with pytest.raises(KeyError), fast_products(layer, half), fast_products(layer):
        assert type(half) is nn.Linear
        raise KeyError
    assert type(layer) is nn.Linear
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    with fast_products(layer):
        assert type(layer) is nn.Linear


@pytest.fixture
def has_half_products(monkeypatch):
    """A processor of AVX2 whose torch has products of weights in half precision."""
    if "fbgemm" not in torch.backends.quantized.supported_engines:
        pytest.skip("torch was built without FBGEMM")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")


@pytest.mark.parametrize("count", [0, 1, 3, 40])
def test_product_of_half_weights(count, has_half_products):
    layer = nn.Linear(24, 40, bias=False)
    round_to_half(layer)
    x = torch.randn(count, 2, 24)
    with torch.no_grad(), fast_products(layer):
        assert type(layer) is HalfWeightLinear
        got = layer(x)
    assert type(layer) is nn.Linear and got.shape == (count, 2, 40) and got.dtype == torch.float32
    assert torch.allclose(got, F.linear(x, layer.weight), atol=1e-6)


def test_half_weights_are_those_of_now(has_half_products):
    """Weights that were trained on, put in another's place or have other numbers are seen."""
    layer, x = nn.Linear(24, 40, bias=False), torch.randn(3, 24)
    for change in (
        lambda: round_to_half(layer),
        lambda: layer.weight.data.mul_(2),  # no new version: `data` does not count them
        lambda: setattr(layer, "weight", nn.Parameter(torch.rand(40, 24).half().float())),
        lambda: nn.init.ones_(layer.weight).mul_(1 + 2**-20),
    ):
        with torch.no_grad():
            change()
            with fast_products(layer):
                kind, got = type(layer), layer(x)
        assert torch.allclose(got, F.linear(x, layer.weight), atol=1e-5)
    assert kind is FewRowsLinear
    layer.bias = nn.Parameter(torch.ones(40))
    with fast_products(layer):
        assert type(layer) is nn.Linear


def test_a_weight_is_copied_once(has_half_products):
    """Whatever layers it is in; none of them keeps the copy."""
    first, second = nn.Linear(24, 40, bias=False), nn.Linear(24, 40, bias=False)
    second.weight = first.weight
    round_to_half(first)
    with fast_products(first):
        packed = first.packed
    with fast_products(second):
        assert second.packed is packed
    assert "packed" not in vars(first) | vars(second)


def test_half_weights_say_the_same(model, plain, has_half_products):
    round_to_half(model.model.language_model, model.lm_head)
    image = torch.randint(0, 255, (3, 40, 50), generator=torch.Generator().manual_seed(4)).to(torch.uint8)
    inputs = tiny_processor()(images=[image], text=["Describe."], return_tensors="pt")
    expected = plain(lambda: model.generate(**inputs, max_new_tokens=12))
    assert torch.equal(model.generate(**inputs, max_new_tokens=12), expected)
    with fast_products(model.model.language_model, model.lm_head):
        assert type(model.lm_head) is HalfWeightLinear
