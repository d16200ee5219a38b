"""Decoding whose batch shrinks says what transformers' own decoding says."""

import pytest
import torch
from transformers import DynamicCache, GenerationConfig

from modeling_rsmoe import arguments_rsmoe
from modeling_rsmoe.fusion_rsmoe import LOOKUP_TOKENS
from modeling_rsmoe.inference.decoding import is_greedy, shrinking_greedy

from ..sequences import rows
from ..tiny import tiny_model, tiny_processor


ENDS = list(range(2, 259, 9))  # one token in nine ends a text, so that sequences end at different steps


@pytest.fixture
def model():
    return tiny_model()


@pytest.fixture
def batches(model, monkeypatch):
    """How many sequences each step of the decoder had."""
    sizes = []
    forward = model.model.language_model.forward

    def counted(*args, inputs_embeds, **kwargs):
        sizes.append(len(inputs_embeds))
        return forward(*args, inputs_embeds=inputs_embeds, **kwargs)

    monkeypatch.setattr(model.model.language_model, "forward", counted)
    return sizes


@pytest.mark.parametrize("settings", [{}, {"no_repeat_ngram_size": 2}, {"min_new_tokens": 3}], ids=str)
def test_sequences_that_have_ended_leave(model, batches, settings):
    inputs = rows()
    settings = {"max_new_tokens": 20, "eos_token_id": ENDS, **settings}
    expected = model.generate(**inputs, **settings)
    sizes = list(batches)
    batches.clear()
    assert torch.equal(model.generate(**inputs, **settings, custom_generate=shrinking_greedy), expected)
    assert set(sizes) == {len(expected)} and len(batches) == len(sizes)
    assert batches == sorted(batches, reverse=True) and len(set(batches)) > 2


def test_sequences_stay_where_others_may_be_counted(model, batches):
    """A constraint that is told which sequence it is at, a penalty with a length for each, a cache that the caller
    keeps, scores."""
    inputs = rows()
    settings = {"max_new_tokens": 20, "eos_token_id": ENDS, "custom_generate": shrinking_greedy}
    count = len(inputs["input_ids"])
    constrained = set()

    def allowed(sequence, ids):
        constrained.add(sequence)
        return list(range(259))

    model.generate(**inputs, **settings, prefix_allowed_tokens_fn=allowed)
    model.generate(**inputs, **settings, repetition_penalty=1.3)
    cache = DynamicCache()
    model.generate(**inputs, **settings, past_key_values=cache)
    outputs = model.generate(**inputs, **settings, return_dict_in_generate=True, output_scores=True)
    assert set(batches) == {count} and constrained == set(range(count))
    assert cache.layers[0].keys.shape[0] == count
    assert {len(scores) for scores in outputs.scores} == {count}


@pytest.mark.parametrize("router_mode", ["generated", "template"])
@pytest.mark.parametrize("fusion", ["concat", "rewrite"])
def test_full_model_says_the_same(model, router_mode, fusion):
    images = list(torch.randint(0, 255, (2, 3, 40, 50), generator=torch.Generator().manual_seed(4)).to(torch.uint8))
    inputs = tiny_processor()(images=images, text=["Describe.", "Where?"], return_tensors="pt")
    settings = {"router_mode": router_mode, "fusion": fusion, "return_dict_in_generate": True}
    settings |= {"eos_token_id": ENDS}
    model.generation_config.eos_token_id = ENDS
    expected = model.generate(**inputs, **settings)
    outputs = model.generate(**inputs, **settings, custom_generate=shrinking_greedy)
    for name in ("sequences", "router_prompts", "expert_sequences"):
        assert torch.equal(outputs[name], expected[name]), name


def test_prompts_of_the_router_that_have_ended_leave(model, batches, monkeypatch):
    images = list(torch.randint(0, 255, (2, 3, 40, 50), generator=torch.Generator().manual_seed(4)).to(torch.uint8))
    inputs = tiny_processor()(images=images, text="Describe.", return_tensors="pt")
    settings = {"fusion": "concat", "return_dict_in_generate": True, "custom_generate": shrinking_greedy}
    model.generation_config.eos_token_id = ENDS
    shrunk = model.generate(**inputs, **settings)
    count = sum(batches)
    batches.clear()
    monkeypatch.setattr(shrinking_greedy, "every_decode", False)
    assert torch.equal(model.generate(**inputs, **settings).router_prompts, shrunk.router_prompts)
    assert count < sum(batches)


@pytest.mark.slow
def test_rewriting_looks_up_in_the_expert_texts(model, monkeypatch):
    """One image, greedily: several tokens in a step, and the same text. Other decoding is left as it is."""
    image = torch.randint(0, 255, (3, 40, 50), generator=torch.Generator().manual_seed(4)).to(torch.uint8)
    inputs = tiny_processor()(images=image, text="Describe.", return_tensors="pt")
    lookups = []
    generate_sequences = model._generate_sequences

    def recorded(*args, **kwargs):
        lookups.append(kwargs.get("prompt_lookup_num_tokens"))
        return generate_sequences(*args, **kwargs)

    monkeypatch.setattr(model, "_generate_sequences", recorded)
    expected = model.generate(**inputs, fusion="rewrite")
    assert lookups == [None, None, LOOKUP_TOKENS]
    assert torch.equal(model.generate(**inputs, fusion="rewrite", custom_generate=shrinking_greedy), expected)
    for other in ({"num_beams": 2}, {"do_sample": True}, {"cache_implementation": "static"}, {"use_cache": False}):
        lookups.clear()
        model.generate(**inputs, fusion="rewrite", **other)
        assert set(lookups) == {None}, other
    with monkeypatch.context() as patched:
        patched.setitem(arguments_rsmoe.PLAIN_GREEDY, "num_beams", ())
        assert torch.equal(model.generate(**inputs, fusion="rewrite"), expected)


def test_what_is_greedy():
    config = GenerationConfig(num_beams=1)
    assert is_greedy(config) and is_greedy(GenerationConfig(num_beams=4), num_beams=1)
    assert not is_greedy(config, num_beams=2) and not is_greedy(GenerationConfig(do_sample=True))
