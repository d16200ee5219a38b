"""Every contender runs and is timed, over the rows and tokens that its name says."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from modeling_rsmoe.bench import speed
from modeling_rsmoe.bench.instructblip import InstructBlip
from modeling_rsmoe.bench.names import BLOCK, FULL, INSTRUCTBLIP, OURS, TEMPLATE
from modeling_rsmoe.bench.peers import DECODERS, Decoders
from modeling_rsmoe.bench.workbench import Workbench, encoded, expert_rows, made_pictures
from modeling_rsmoe.hub.assemble import round_to_half
from tests.tiny import tiny_model, tiny_processor


def quiet(name, share):
    """Nobody is told."""


@pytest.fixture(scope="module")
def decoders(bench):
    return Decoders(bench)


def test_every_text_has_the_same_length(bench, decoders):
    inputs = bench.inputs(2, expert_inputs=True)
    said = bench.full_of(inputs, "template")(return_dict_in_generate=True)
    assert said.expert_sequences.shape == (2, 3, 4) and bool((said.expert_sequences != 2).all())
    ids = bench.inputs(2, expert_inputs=False)["input_ids"]
    assert bench.block(2)().shape == (2, ids.shape[1] + 4)
    rows = expert_rows(bench, inputs)
    assert {name: decoders[name].generate(rows).shape for name in DECODERS} == dict.fromkeys(DECODERS, (6, 4))
    for alone in (decoders.plain, decoders.block):
        assert alone.generate(rows, min_new_tokens=1, max_new_tokens=1).shape == (6, 1)
    assert torch.equal(decoders.plain.generate(rows), decoders.block.generate(rows))


def test_latency_and_throughput(bench):
    small = replace(bench, tokens=2, router_tokens=2)
    (latency,) = speed.latency(small, 1, quiet)
    assert list(latency["times"])[:3] == [BLOCK, FULL, TEMPLATE] and len(latency["times"]) == 6
    groups = speed.throughput(small, 1, quiet, images=(1, 3), most=4)
    assert [(one["key"], one["captions"]) for one in groups] == [(f"images: {n}", n) for n in (1, 3, 4)]
    assert [list(one["times"]) for one in groups] == [[BLOCK, FULL, TEMPLATE]] * 2 + [[FULL]]
    assert all(min(own["wall"]) > 0 for one in groups for own in one["times"].values())


def test_peers(bench, decoders):
    small = replace(bench, tokens=2, router_tokens=2)
    groups = speed.sequential(small, 1, quiet, images=(1,)) + speed.decoding(small, decoders, 1, quiet, images=(1, 2))
    groups += speed.against_instructblip(small, 1, quiet)
    assert [one["key"] for one in groups] == ["sequential: 1", "rows: 1", "rows: 2", "instructblip"]
    assert {*DECODERS, f"{BLOCK}, 3 rows", f"{BLOCK}, 1 row"} == groups[1]["times"].keys()
    assert f"{BLOCK}, 6 rows" in groups[2]["times"] and {BLOCK, INSTRUCTBLIP} == groups[3]["times"].keys()


def test_a_step_s_bytes_are_counted(bench, decoders):
    small = replace(bench, tokens=3)
    (group,), facts = speed.steps(small, decoders, 1, quiet)
    assert list(group["times"]) == [f"{who}, {n}" for who in (BLOCK, OURS) for n in ("1 token", "3 tokens")]
    layer = 32 * 32 * 2 + 32 * 16 * 2 + 3 * 32 * 48 + 2 * 32  # attention, grouped keys and values, MLP, norms
    assert facts["bytes"][BLOCK] == 4 * (2 * layer + 265 * 32)
    pairs = [(32, 32), (32, 16), (32, 16), (32, 32), (32, 48), (32, 48), (48, 32)]
    ranks = 2 + 3 * 4
    assert facts["bytes"][OURS] - facts["bytes"][BLOCK] == 4 * 2 * ranks * sum(map(sum, pairs)) and facts["rows"] == 3


def test_a_copy_in_half_precision_is_half_as_many_bytes(monkeypatch):
    if "fbgemm" not in torch.backends.quantized.supported_engines:
        pytest.skip("torch was built without FBGEMM")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    bench = Workbench(tiny_model(), tiny_processor(), Path("nowhere"), tokens=2, router_tokens=2)
    block = bench.model.model.language_model, bench.model.lm_head
    before = [speed.step_bytes(bench, experts) for experts in (False, True)]
    round_to_half(*block)
    matrices = {weight for part in block for weight in part.parameters() if weight.ndim == 2}
    saved = 2 * sum(weight.numel() for weight in matrices)
    assert before[0] - 4 * 32 * 4 == 2 * saved  # all but the norms
    assert [speed.step_bytes(bench, experts) for experts in (False, True)] == [size - saved for size in before]


def test_instructblip_has_our_shapes(bench):
    peer = InstructBlip(bench)
    own, theirs = bench.model.model, peer.model
    assert theirs.language_model.config.hidden_size == own.language_model.config.hidden_size
    layers = [len(model.encoder.layer) for model in (theirs.qformer, own.encoder.qformer)]
    assert layers[0] == layers[1] and len(theirs.vision_model.encoder.layers) == 2
    seen = theirs.vision_model(peer.inputs["pixel_values"]).last_hidden_state
    assert seen.shape == bench.model.encode_image(peer.inputs["pixel_values"]).shape
    new = [run().shape[1] - peer.inputs["input_ids"].shape[1] for run in (peer.theirs, peer.ours)]
    assert new == [4, 4]


def test_made_pictures_are_pictures():
    pictures = made_pictures(2)
    assert [picture.size for picture in pictures] == [(256, 256)] * 2 and encoded(pictures[0])[:2] == b"\xff\xd8"
    assert pictures[0].tobytes() == made_pictures(1)[0].tobytes() != pictures[1].tobytes()


def test_more_images_than_pictures(bench):
    assert len(bench.some(20)) == 20
    few = Workbench(bench.model, bench.processor, bench.folder, pictures=made_pictures(1))
    inputs = few.inputs(3, expert_inputs=True)
    assert torch.equal(inputs["pixel_values"][0], inputs["pixel_values"][2])
