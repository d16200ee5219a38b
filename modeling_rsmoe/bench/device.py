"""A device by itself, such as a GPU: time to the first token and to whole captions, kinds of cache, its memory."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from transformers import CompileConfig

from . import names
from .names import count
from .timing import Group
from .workbench import Workbench


IMAGES = (1, 4, 16, 64)


def device(bench: Workbench) -> tuple[list[Group], dict[str, Any]]:
    """From some images in one batch to as many texts, and to the first token of each; how kinds of cache compare."""
    groups: list[Group] = []
    peaks: dict[str, int] = {}
    first = replace(bench, tokens=1)
    for images in IMAGES:
        variants = {
            f"{names.BASE}, 1 token": first.base(images),
            names.BASE: bench.base(images),
            f"{names.FULL}, 1 token": first.full(images),
            names.FULL: bench.full(images),
        }
        title = count(images, "image")
        group = bench.measure(f"device: {images}", title, variants)
        groups.append({**group, "base": names.BASE, "captions": images})
        for name in (names.BASE, names.FULL):
            if (peak := _peak_bytes(bench.model.device, variants[name])) is not None:
                peaks[f"{name}, {title}"] = peak
    groups += [caches(bench, images) for images in (IMAGES[0], IMAGES[-1])]
    return groups, {"device_bytes": peaks} if peaks else {}


def caches(bench: Workbench, images: int) -> Group:
    """The base LM's captions by transformers' own search with each kind of cache."""
    inputs = bench.inputs(images, expert_inputs=False)

    def generate(cache: str, **settings: Any) -> Callable[[], Any]:
        return lambda: bench.model.generate(**inputs, **bench.lengths, cache_implementation=cache, **settings)

    variants = {
        names.BASE: bench.base(images),
        f"{names.BASE}, dynamic cache": generate("dynamic"),
        f"{names.BASE}, static cache": generate("static", disable_compile=True),
    }
    if (config := compile_config(bench.model.device)) is not None:
        variants[f"{names.BASE}, static cache, torch.compile"] = generate("static", compile_config=config)
    title = f"kinds of cache, {count(images, 'image')}"
    return {**bench.measure(f"caches: {images}", title, variants), "captions": images}


def compile_config(device: torch.device) -> CompileConfig | None:
    """How a step is compiled; not on a processor, where it takes minutes and gains nothing (docs/lab-notebook)."""
    return None if device.type == "cpu" else CompileConfig()


def _peak_bytes(device: torch.device, run: Callable[[], Any]) -> int | None:
    """The most of a GPU's memory that tensors take in a run; None elsewhere, where the section memory says it."""
    if device.type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats(device)
    run()
    return torch.cuda.max_memory_allocated(device)
