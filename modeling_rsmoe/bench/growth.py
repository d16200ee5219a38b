"""How the cost grows with experts, with the length of the texts, with image tokens and with threads: one curve each."""

import copy
import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from .names import BLOCK, FULL, TEMPLATE
from .timing import Group, Tell, in_turns
from .workbench import Workbench


EXPERTS = (1, 2, 3, 4, 5, 6, 7, 8)
TOKENS = (8, 24, 48, 96)
IMAGE_TOKENS = (8, 32, 64, 128)


def growth(bench: Workbench, repeats: int, tell: Tell) -> list[Group]:
    """A group for each curve; all of its points take turns. Images are a curve too: `speed.throughput`."""
    curves: dict[str, tuple[str, list[tuple[str, float, Callable[[], Any]]]]] = {
        "experts": ("1 image, experts", _by_experts(bench)),
        "tokens": ("1 image, new tokens a part", _by_tokens(bench)),
        "image tokens": ("1 image, image tokens", _by_image_tokens(bench)),
        "threads": ("1 image, threads of the processor", _by_threads(bench)),
    }
    groups: list[Group] = []
    for index, (name, (title, points)) in enumerate(curves.items()):

        def told(contender: str, share: float, index: int = index, name: str = name) -> None:
            tell(f"{name}: {contender}", (index + share) / len(curves))

        times = in_turns({label: run for label, _, run in points}, repeats, told)
        x = {label: value for label, value, _ in points}
        groups.append({"key": f"growth: {name}", "title": title, "base": points[0][0], "times": times, "x": x})
    return groups


def _by_experts(bench: Workbench) -> list[tuple[str, float, Callable[[], Any]]]:
    """With both routers: prompts of the router end where it ends them, and it does not know experts that are new here."""
    points = [(BLOCK, 0.0, bench.block())]
    for n in EXPERTS:
        own = with_experts(bench, n)
        experts = f"{n} expert{'s' if n > 1 else ''}"
        points += [(f"{FULL}, {experts}", float(n), own.full())]
        points += [(f"{TEMPLATE}, {experts}", float(n), own.full(1, "template"))]
    return points


def _by_tokens(bench: Workbench) -> list[tuple[str, float, Callable[[], Any]]]:
    points = []
    for n in TOKENS:
        own = replace(bench, tokens=n)
        points += [(f"{BLOCK}, {n} tokens", float(n), own.block()), (f"{FULL}, {n} tokens", float(n), own.full())]
    return points


def _by_image_tokens(bench: Workbench) -> list[tuple[str, float, Callable[[], Any]]]:
    points = []
    for n in IMAGE_TOKENS:
        own = with_image_tokens(bench, n)
        points += [(f"{BLOCK}, {n} image tokens", float(n), own.block())]
        points += [(f"{FULL}, {n} image tokens", float(n), own.full())]
    return points


def _by_threads(bench: Workbench) -> list[tuple[str, float, Callable[[], Any]]]:
    def on(threads: int, run: Callable[[], Any]) -> Callable[[], None]:
        def limited() -> None:
            before = torch.get_num_threads()
            torch.set_num_threads(threads)
            try:
                run()
            finally:
                torch.set_num_threads(before)

        return limited

    cores = os.cpu_count() or 1
    counts = sorted({cores, *(2**n for n in range(cores.bit_length()) if 2**n <= cores)})
    points = []
    for n in counts:
        points += [(f"{BLOCK}, {_threads(n)}", float(n), on(n, bench.block()))]
        points += [(f"{FULL}, {_threads(n)}", float(n), on(n, bench.full()))]
    return points


def _threads(count: int) -> str:
    return "1 thread" if count == 1 else f"{count} threads"


# ---- the same model in other shapes


def sharing_weights(bench: Workbench, embeddings: bool = True) -> Workbench:
    """A copy whose structure can be changed; its weights are the bench's own and take no memory.

    Args:
        embeddings: whether they are shared too; where the vocabulary grows they may not be (it grows in place).
    """
    model = bench.model
    shared = {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]}
    if not embeddings:
        for part in (model.get_input_embeddings(), model.get_output_embeddings()):
            shared.pop(id(part.weight), None)
    return replace(bench, model=copy.deepcopy(model, shared), processor=copy.copy(bench.processor))


def with_experts(bench: Workbench, count: int) -> Workbench:
    """With so many experts: the first ones, or new ones that begin at the base LM (they cost what trained ones cost)."""
    from ..experts_rsmoe import detach

    own = sharing_weights(bench, embeddings=count <= len(bench.processor.experts))
    own.processor.tokenizer = copy.deepcopy(bench.processor.tokenizer)
    model, config = own.model, own.model.config
    for number in range(len(config.expert_names), count):
        name = f"expert{number + 1}"
        instruction = "What else is in this image, and what is it like?"
        model.add_expert(name, own.processor.add_expert(name, instruction))
    names = config.expert_names[:count]
    config.expert_names, config.expert_token_ids = names, config.expert_token_ids[:count]
    own.processor.experts = names
    detach(model.model.language_model)
    model.model.experts = nn.ModuleDict({name: model.model.experts[name] for name in names})
    model.model.attach_experts()
    return own


def with_image_tokens(bench: Workbench, count: int) -> Workbench:
    """With so many queries for each image: the bench's own, repeated."""
    own = sharing_weights(bench)
    encoder = own.model.model.encoder
    weight = encoder.query_tokens.weight.detach()
    rows = torch.arange(count, device=weight.device) % len(weight)
    encoder.query_tokens = nn.Embedding.from_pretrained(weight[rows].clone())
    own.model.config.num_query_tokens = own.processor.num_query_tokens = count
    return own
