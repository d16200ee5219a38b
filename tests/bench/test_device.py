"""What a device is measured by: the same texts with every kind of cache, compiled too."""

from dataclasses import replace

import pytest
import torch
from transformers import CompileConfig

from modeling_rsmoe.bench import device
from modeling_rsmoe.bench.names import BASE, FULL
from modeling_rsmoe.bench.tables import tables

from .results import made_results


def test_first_tokens_and_captions(bench, monkeypatch):
    monkeypatch.setattr(device, "IMAGES", (1, 2))
    groups, facts = device.device(replace(bench, tokens=3, router_tokens=2))
    assert [one["key"] for one in groups] == ["device: 1", "device: 2", "caches: 1", "caches: 2"]
    assert [one["captions"] for one in groups] == [1, 2, 1, 2] and facts == {}
    assert list(groups[0]["times"]) == [f"{BASE}, 1 token", BASE, f"{FULL}, 1 token", FULL]
    assert list(groups[2]["times"]) == [BASE, f"{BASE}, dynamic cache", f"{BASE}, static cache"]


@pytest.mark.slow
def test_kinds_of_cache_give_the_same_texts(bench, monkeypatch):
    """A step is compiled on processors too, without a compiler's code."""
    compiled = CompileConfig(backend="eager", mode=None)
    compiled._compile_all_devices = True
    monkeypatch.setattr(device, "compile_config", lambda _: compiled)
    texts, steps = {}, []
    monkeypatch.setattr(type(bench), "measure", lambda self, key, title, variants: variants)
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda *args, **kwargs: steps.append(args) or compile_(*args, **kwargs))
    for name, run in device.caches(bench, 2).items():
        if name != "captions":
            texts[name] = run()
    assert len(texts) == 4 and all(torch.equal(text, texts[BASE]) for text in texts.values()) and steps


def test_a_gpus_memory_is_shown(bench, monkeypatch):
    for name, value in (("reset_peak_memory_stats", None), ("max_memory_allocated", 3_000_000)):
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    ran = []
    assert device._peak_bytes(torch.device("cpu"), lambda: ran.append(1)) is None and not ran
    assert device._peak_bytes(torch.device("cuda"), lambda: ran.append(1)) == 3_000_000 and ran
    results = made_results()
    results["sections"]["device"] = {"seconds": 1, "groups": [], "facts": {"device_bytes": {"1 image": 3_000_000}}}
    assert ["1 image", "3"] in next(one for one in tables(results) if "device's" in one.title).rows
