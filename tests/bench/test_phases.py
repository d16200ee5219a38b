"""Where the time goes: phases that add up, products of the right shapes, shares of operations."""

from dataclasses import replace

import pytest

from modeling_rsmoe.bench.names import BASE, RSMOE
from modeling_rsmoe.bench.phases import TOTAL, operations, phases, products, prompt_lengths
from modeling_rsmoe.inference.layers import remove_fast_kernels, use_fast_kernels


def test_phases_add_up(bench):
    groups = {one["key"].removeprefix("phases: "): one["times"] for one in phases(replace(bench, repeats=2))}
    names = ["image: decode, resize, normalise", "texts to tokens", "ViT", "Q-Former", "router", "experts"]
    assert [list(times) for times in groups.values()] == [[*names, "fusion", TOTAL]] * 4
    for times in groups.values():
        for index in range(2):
            spent = [of_phase["wall"][index] for name, of_phase in times.items() if name != TOTAL]
            assert sum(spent) == pytest.approx(times[TOTAL]["wall"][index], rel=0.1, abs=5e-3)
    router, template = (groups[f"full, {name}, concat"]["router"]["wall"] for name in ("router", "template"))
    assert min(router) > max(template)  # a template is not written
    concat, rewrite = (groups[f"full, router, {name}"]["fusion"]["wall"] for name in ("concat", "rewrite"))
    assert min(rewrite) > max(concat)


def test_lengths(bench):
    found = prompt_lengths(bench)
    assert len(found["router's prompts"]) == len(found["experts' sequences"]) == len(found["router's sequences"]) == 3
    assert found["base LM's sequence"] == bench.inputs(1, expert_inputs=False)["input_ids"].shape[1]
    assert max(found["router's prompts"]) <= bench.router_tokens


def test_hooks_do_not_stay(bench):
    qformer = bench.model.model.encoder.qformer
    before = len(qformer._forward_hooks), len(qformer._forward_pre_hooks)
    phases(replace(bench, tokens=2))
    assert (len(qformer._forward_hooks), len(qformer._forward_pre_hooks)) == before


@pytest.mark.parametrize("is_fast", [False, True], ids=["transformers' layers", "fast layers"])
def test_products_and_operations(bench, is_fast):
    if is_fast:
        use_fast_kernels(bench.model, "columns")
    try:
        group = products(bench)
    finally:
        remove_fast_kernels(bench.model)
    assert list(group["times"]) == [f"{BASE}, 1 sequence", f"{BASE}, 3 sequences", "with experts, 3 sequences"]
    assert all(min(times["wall"]) > 0 for times in group["times"].values())
    found = operations(bench)
    assert list(found) == [BASE, RSMOE]
    for shares in found.values():
        assert sum(shares.values()) == pytest.approx(1) and min(shares.values()) >= 0
        assert shares["matrix products"] > 0 and shares["Python between operations"] > 0
