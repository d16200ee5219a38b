"""How the cost grows with experts, length of the texts, image tokens and threads: one curve each."""

import copy
import os
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from .names import BASE, FULL, TEMPLATE, count
from .timing import Group
from .workbench import Workbench


EXPERTS = (1, 2, 3, 4, 5, 6, 7, 8)
TOKENS = (8, 24, 48, 96)
IMAGE_TOKENS = (8, 32, 64, 128)
Point = tuple[str, float, Callable[[], Any]]  # name, what grows, run


def growth(bench: Workbench) -> tuple[list[Group], dict[str, Any]]:
    """A group for each curve; all of its points run in the same rounds. Images are a curve too: `speed.throughput`."""
    cores = os.cpu_count() or 1
    threads = sorted({cores, *(2**n for n in range(cores.bit_length()))})
    curves: dict[str, tuple[str, list[Point]]] = {
        "experts": ("1 image, experts", _by_experts(bench)),
        "tokens": ("1 image, new tokens per text", _both("token", TOKENS, lambda n: replace(bench, tokens=n))),
        "image tokens": (
            "1 image, image tokens",
            _both("image token", IMAGE_TOKENS, lambda n: with_image_tokens(bench, n)),
        ),
        "threads": (
            "1 image, threads of the processor",
            [(name, n, _on_threads(int(n), run)) for name, n, run in _both("thread", threads, lambda n: bench)],
        ),
    }
    groups = []
    for name, (title, points) in curves.items():
        group = bench.measure(f"growth: {name}", title, {label: run for label, _, run in points})
        group["x"] = {label: x for label, x, _ in points}
        groups.append(group)
    return groups, {}


def _by_experts(bench: Workbench) -> list[Point]:
    """With both router modes: the router ends its prompts where it likes, and it does not know the new experts."""
    points: list[Point] = [(BASE, 0.0, bench.base())]
    for n in EXPERTS:
        variant, experts = with_experts(bench, n), count(n, "expert")
        points.append((f"{FULL}, {experts}", float(n), variant.full()))
        points.append((f"{TEMPLATE}, {experts}", float(n), variant.full(1, "template")))
    return points


def _both(noun: str, numbers: Iterable[int], variant: Callable[[int], Workbench]) -> list[Point]:
    """Base LM and full model of each number's variant."""
    points: list[Point] = []
    for n in numbers:
        changed, number = variant(n), count(n, noun)
        points.append((f"{BASE}, {number}", float(n), changed.base()))
        points.append((f"{FULL}, {number}", float(n), changed.full()))
    return points


def _on_threads(threads: int, run: Callable[[], Any]) -> Callable[[], None]:
    def limited() -> None:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            run()
        finally:
            torch.set_num_threads(before)

    return limited


# ---- the same model in other shapes


def with_experts(bench: Workbench, number: int) -> Workbench:
    """A copy with so many experts: the first ones, and new ones that begin at the base LM (and cost as much)."""
    from ..adapters_rsmoe import detach_adapters

    variant = bench.sharing_weights(embeddings=number <= len(bench.processor.experts))
    variant.processor.tokenizer = copy.deepcopy(bench.processor.tokenizer)
    model, config = variant.model, variant.model.config
    for index in range(len(config.expert_names), number):
        name, instruction = f"expert{index + 1}", "What else is in this image, and what is it like?"
        model.add_expert(name, variant.processor.add_expert(name, instruction))
    names = config.expert_names[:number]
    config.expert_names, config.expert_token_ids = names, config.expert_token_ids[:number]
    variant.processor.experts = names
    detach_adapters(model.model.language_model)
    model.model.experts = nn.ModuleDict({name: model.model.experts[name] for name in names})
    model.model.attach_adapters()
    return variant


def with_image_tokens(bench: Workbench, number: int) -> Workbench:
    """A copy with so many queries for each image: the bench's, repeated."""
    variant = bench.sharing_weights()
    encoder = variant.model.model.encoder
    weight = encoder.query_tokens.weight.detach()
    indices = torch.arange(number, device=weight.device) % len(weight)
    encoder.query_tokens = nn.Embedding.from_pretrained(weight[indices].clone())
    variant.model.config.num_query_tokens = variant.processor.num_query_tokens = number
    return variant
