"""Every variant runs and is timed, over the sequences and tokens that its name says."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from modeling_rsmoe.bench import speed
from modeling_rsmoe.bench.instructblip import instructblip_like
from modeling_rsmoe.bench.names import BASE, FULL, INSTRUCTBLIP, RSMOE, TEMPLATE, TRANSFORMERS
from modeling_rsmoe.bench.peers import DECODERS, decoder
from modeling_rsmoe.bench.workbench import Workbench, expert_sequences, made_images
from modeling_rsmoe.fusion_rsmoe import LOOKUP_TOKENS
from modeling_rsmoe.hub.assemble import round_to_half
from modeling_rsmoe.inference.kernels import FastLinear
from modeling_rsmoe.inference.layers import FastDecoderLayer, use_fast_kernels
from tests.tiny import tiny_model, tiny_processor


def test_every_text_has_the_same_length(bench):
    inputs = bench.inputs(2, expert_inputs=True)
    said = bench.full_of(inputs, "template")(return_dict_in_generate=True)
    assert said.expert_sequences.shape == (2, 3, 4) and bool((said.expert_sequences != 2).all())
    ids = bench.inputs(2, expert_inputs=False)["input_ids"]
    assert bench.base(2)().shape == (2, ids.shape[1] + 4)
    sequences = expert_sequences(bench, inputs)
    assert {name: decoder(bench, name).generate(sequences).shape for name in DECODERS} == dict.fromkeys(
        DECODERS, (6, 4)
    )
    plain, base = (decoder(bench, name) for name in (TRANSFORMERS, BASE))
    for alone in (plain, base):
        assert alone.generate(sequences, min_new_tokens=1, max_new_tokens=1).shape == (6, 1)
    assert torch.equal(plain.generate(sequences), base.generate(sequences))


@pytest.mark.slow
def test_latency_and_throughput(bench, monkeypatch):
    monkeypatch.setattr(speed, "IMAGES", (1, 3))
    monkeypatch.setattr(speed, "MOST_IMAGES", 4)
    small = replace(bench, tokens=2, router_tokens=2)
    latency = speed.latency(small)[0][0]
    assert list(latency["times"])[:3] == [BASE, FULL, TEMPLATE] and len(latency["times"]) == 6
    groups, _ = speed.throughput(small)
    assert [(one["key"], one["captions"]) for one in groups] == [(f"images: {n}", n) for n in (1, 3, 4)]
    assert [list(one["times"]) for one in groups] == [[BASE, FULL, TEMPLATE]] * 2 + [[FULL]]
    assert all(min(times["wall"]) > 0 for one in groups for times in one["times"].values())


def test_peers(bench):
    small = replace(bench, tokens=2, router_tokens=2)
    groups = [speed.sequential(small, 1), speed.decoding(small, 1), speed.decoding(small, 2)]
    groups.append(speed.against_instructblip(small))
    assert [one["key"] for one in groups] == ["sequential: 1", "sequences: 1", "sequences: 2", "instructblip"]
    assert {*DECODERS, f"{BASE}, 3 sequences", f"{BASE}, 1 sequence"} == groups[1]["times"].keys()
    assert f"{BASE}, 6 sequences" in groups[2]["times"] and {BASE, INSTRUCTBLIP} == groups[3]["times"].keys()


def test_a_step_s_bytes_are_counted(bench):
    small = replace(bench, tokens=3)
    group, facts = speed.steps(small)
    assert list(group["times"]) == [f"{name}, {n}" for name in (BASE, RSMOE) for n in ("1 token", "3 tokens")]
    layer = 32 * 32 * 2 + 32 * 16 * 2 + 3 * 32 * 48 + 2 * 32  # attention, grouped keys and values, MLP, norms
    assert facts["bytes"][BASE] == 4 * (2 * layer + 265 * 32)
    pairs = [(32, 32), (32, 16), (32, 16), (32, 32), (32, 48), (32, 48), (48, 32)]
    ranks = 3 * 4  # the experts, and not the router
    assert (
        facts["bytes"][RSMOE] - facts["bytes"][BASE] == 4 * 2 * ranks * sum(map(sum, pairs))
        and facts["sequences"] == 3
    )


def test_a_copy_in_half_precision_is_half_as_many_bytes():
    if "fbgemm" not in torch.backends.quantized.supported_engines:
        pytest.skip("torch was built without FBGEMM")
    bench = Workbench(tiny_model(), tiny_processor(), Path("nowhere"), tokens=2, router_tokens=2)
    use_fast_kernels(bench.model, "half")
    bench.base()()
    modules = bench.model.model.language_model, bench.model.lm_head
    before = [speed.step_bytes(bench, experts) for experts in (False, True)]
    round_to_half(*modules)
    bench.base()()
    matrices = {weight for module in modules for weight in module.parameters() if weight.ndim == 2}
    saved = 2 * sum(weight.numel() for weight in matrices)
    assert before[0] - 4 * 32 * 4 == 2 * saved  # all but the norms
    assert [speed.step_bytes(bench, experts) for experts in (False, True)] == [size - saved for size in before]


def test_without_kernels():
    """The same texts by layers of torch and a search of transformers; the bench's model stays as it is."""
    bench = Workbench(tiny_model(), tiny_processor(), Path("nowhere"), tokens=4, router_tokens=5)
    number = use_fast_kernels(bench.model, "columns")
    plain = bench.without_kernels()
    for kind, count in ((FastLinear, number), (FastDecoderLayer, 2)):
        fast = [sum(isinstance(layer, kind) for layer in each.model.modules()) for each in (bench, plain)]
        assert fast == [count, 0] and count > 0
    assert plain.model.lm_head.weight is bench.model.lm_head.weight
    for fusion in ("concat", "rewrite"):
        assert torch.equal(plain.full(1, "generated", fusion)(), bench.full(1, "generated", fusion)())


def test_plain_search_looks_nothing_up(bench, monkeypatch):
    """Else the variant would be no plain one: prompt lookup is switched off, and so is our own search."""
    lookups = []
    variant = bench.without_kernels()
    for one in (bench, variant):
        generate = one.model._generate_sequences

        def spy(*args, generate=generate, **kwargs):
            lookups.append((kwargs.get("prompt_lookup_num_tokens"), "custom_generate" in kwargs))
            return generate(*args, **kwargs)

        monkeypatch.setattr(one.model, "_generate_sequences", spy)
        one.full(1, "template", "rewrite")()
    assert lookups == [(None, True), (LOOKUP_TOKENS, False), (None, False), (None, False)]


def test_instructblip_has_our_shapes(bench):
    model, inputs = bench.model.model, bench.inputs(1, expert_inputs=False)
    theirs = instructblip_like(bench.model.config, inputs["pixel_values"].shape[-1], torch.float32)
    assert theirs.language_model.config.hidden_size == model.language_model.config.hidden_size
    layers = [len(qformer.encoder.layer) for qformer in (theirs.qformer, model.encoder.qformer)]
    assert layers[0] == layers[1] and len(theirs.vision_model.encoder.layers) == 2
    seen = theirs.vision_model(inputs["pixel_values"]).last_hidden_state
    assert seen.shape == bench.model.encode_image(inputs["pixel_values"]).shape


def test_made_images_are_images():
    images = made_images(2)
    assert [image.size for image in images] == [(256, 256)] * 2
    assert images[0].tobytes() == made_images(1)[0].tobytes() != images[1].tobytes()


def test_more_images_than_there_are(bench):
    inputs = replace(bench, images=made_images(1)).inputs(3, expert_inputs=True)
    assert len(inputs["pixel_values"]) == 3
    assert torch.equal(inputs["pixel_values"][0], inputs["pixel_values"][2])
