"""Where the time goes: phases that add up, products of the right shapes, shares of operations."""

from dataclasses import replace

import pytest

from modeling_rsmoe.bench.names import BLOCK, OURS
from modeling_rsmoe.bench.peers import Decoders
from modeling_rsmoe.bench.phases import WHOLE, lengths, operations, phases, products


def quiet(name, share):
    """Nobody is told."""


def test_phases_add_up(bench):
    groups = {one["key"].removeprefix("phases: "): one["times"] for one in phases(bench, 2, quiet)}
    names = ["image: decode, resize, normalise", "texts to tokens", "ViT", "Q-Former", "router", "experts"]
    assert [list(times) for times in groups.values()] == [[*names, "composing", WHOLE]] * 4
    for times in groups.values():
        for turn in range(2):
            parts = [own["wall"][turn] for name, own in times.items() if name != WHOLE]
            assert sum(parts) == pytest.approx(times[WHOLE]["wall"][turn], rel=0.1, abs=5e-3)
    router, template = (groups[f"full, {name}, concat"]["router"]["wall"] for name in ("router", "template"))
    assert min(router) > max(template)  # a template is not written
    concat, llm = (groups[f"full, router, {name}"]["composing"]["wall"] for name in ("concat", "rewrite"))
    assert min(llm) > max(concat)


def test_lengths(bench):
    found = lengths(bench)
    assert len(found["router's prompts"]) == len(found["experts' rows"]) == len(found["router's rows"]) == 3
    assert found["base LM's row"] == bench.inputs(1, expert_inputs=False)["input_ids"].shape[1]
    assert max(found["router's prompts"]) <= bench.router_tokens


def test_hooks_do_not_stay(bench):
    vit = bench.model.model.encoder.vision_model
    before = len(vit._forward_hooks), len(vit._forward_pre_hooks)
    phases(replace(bench, tokens=2), 1, quiet)
    assert (len(vit._forward_hooks), len(vit._forward_pre_hooks)) == before


def test_products_and_operations(bench):
    (group,) = products(bench, 1, quiet)
    assert list(group["times"]) == [f"{BLOCK}, 1 row", f"{BLOCK}, 3 rows", "with experts, 3 rows"]
    assert all(min(own["wall"]) > 0 for own in group["times"].values())
    found = operations(bench, Decoders(bench))
    assert list(found) == [BLOCK, OURS]
    for shares in found.values():
        assert sum(shares.values()) == pytest.approx(1) and min(shares.values()) >= 0
        assert shares["matrix products"] > 0 and shares["Python between operations"] > 0
