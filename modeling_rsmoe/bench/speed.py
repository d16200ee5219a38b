"""Latency, throughput and peers: the whole path and its decoders, timed in turn."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from ..decoding_rsmoe import HalfWeightLinear, fast_products
from .names import BLOCK, FULL, INSTRUCTBLIP, ONE_AFTER_ANOTHER, ONE_BATCH, ONE_BY_ONE, OURS, PLAIN_SEARCH
from .names import images as _counted
from .names import tokens as _tokens
from .peers import DECODERS, Decoders, one_after_another, plain_search
from .timing import Group, Tell, in_turns
from .workbench import Workbench, expert_rows, modes


IMAGES = (1, 4, 8, 16, 32)
MOST_IMAGES = 64  # of the whole path alone, for the curve
WARMED = 8  # a turn of larger batches takes long, and smaller ones have warmed up
ROW_IMAGES = (1, 8)  # of the decoders: 3 and 24 rows with three experts


def latency(bench: Workbench, repeats: int, tell: Tell) -> list[Group]:
    """From one picture to one text, in every mode."""
    contenders = {
        BLOCK: bench.block(),
        **{name: bench.full(1, *mode) for name, mode in modes(bench.fusions).items()},
    }
    *_, composed = (name for name in contenders if name.endswith("router, rewrite"))
    contenders[f"{composed}, {PLAIN_SEARCH}"] = partial(_plainly, bench, contenders[composed])
    return [
        {
            "key": "latency",
            "title": "1 image",
            "base": BLOCK,
            "times": in_turns(contenders, repeats, tell),
            "captions": 1,
        }
    ]


def throughput(
    bench: Workbench, repeats: int, tell: Tell, images: Sequence[int] = IMAGES, most: int = MOST_IMAGES
) -> list[Group]:
    """From so many pictures in one batch to as many texts.

    Args:
        most: a last batch, once, by the whole path alone: for the curve.
    """
    groups: list[Group] = []
    for index, count in enumerate([*images, most]):
        contenders = {name: bench.full(count, *mode) for name, mode in modes(("concat",)).items()}
        contenders = {FULL: contenders[FULL]} if count == most else {BLOCK: bench.block(count), **contenders}
        told = _part(tell, index, len(images) + 1, f"{_counted(count)}: ")
        times = in_turns(contenders, 1 if count == most else repeats, told, warm=count <= WARMED)
        base = next(iter(contenders))
        groups.append(
            {"key": f"images: {count}", "title": _counted(count), "base": base, "times": times, "captions": count}
        )
    return groups


def sequential(bench: Workbench, repeats: int, tell: Tell, images: Sequence[int] = ROW_IMAGES) -> list[Group]:
    """(b): all rows in one batch against router and experts one after another, image by image, from the same tensors; and
    what decoding of our own saves."""
    groups: list[Group] = []
    for index, count in enumerate(images):
        inputs = bench.inputs(count, expert_inputs=True)
        contenders: dict[str, Callable[[], Any]] = {
            ONE_BATCH: bench.full_of(inputs),
            f"{ONE_BATCH}, {PLAIN_SEARCH}": partial(_plainly, bench, bench.full_of(inputs)),
            ONE_AFTER_ANOTHER: partial(one_after_another, bench, inputs),
        }
        told = _part(tell, index, len(images), f"{_counted(count)}: ")
        times = in_turns(contenders, repeats, told, warm=count == 1)
        title = f"(b) router and experts, {_counted(count)}"
        groups.append({"key": f"sequential: {count}", "title": title, "base": ONE_BATCH, "times": times})
    return groups


def _plainly(bench: Workbench, run: Callable[[], Any]) -> None:
    with plain_search(bench.model):
        run()


def decoding(
    bench: Workbench, decoders: Decoders, repeats: int, tell: Tell, images: Sequence[int] = ROW_IMAGES
) -> list[Group]:
    """(a), (c), (d): who decodes the experts' rows; also the base LM alone, over one row and over as many rows."""
    groups: list[Group] = []
    for index, count in enumerate(images):
        rows = expert_rows(bench, bench.inputs(count, expert_inputs=True))
        who = {name: decoders[name] for name in DECODERS if name != ONE_BY_ONE or count == 1}
        contenders = {name: partial(decoder.generate, rows) for name, decoder in who.items()}
        contenders[f"{BLOCK}, {len(rows)} rows"] = partial(decoders.block.generate, rows)
        contenders[f"{BLOCK}, 1 row"] = partial(decoders.block.generate, rows.of([0]))
        told = _part(tell, index, len(images), f"{len(rows)} rows: ")
        title = f"(a), (c), (d) decoding {len(rows)} rows of experts"
        times = in_turns(contenders, repeats, told)
        groups.append({"key": f"rows: {count}", "title": title, "base": OURS, "times": times})
    return groups


@torch.no_grad()
def steps(bench: Workbench, decoders: Decoders, repeats: int, tell: Tell) -> tuple[list[Group], dict[str, Any]]:
    """(g): the time of one decoding step, from texts of 1 and of `tokens` tokens, and the bytes of weights that it reads."""
    rows = expert_rows(bench, bench.inputs(1, expert_inputs=True))
    one = rows.of([0])
    few = {"min_new_tokens": 1, "max_new_tokens": 1}
    contenders: dict[str, Callable[[], Any]] = {}
    for name, decoder, own in ((BLOCK, decoders.block, one), (OURS, decoders[OURS], rows)):
        contenders[f"{name}, {_tokens(1)}"] = partial(decoder.generate, own, **few)
        contenders[f"{name}, {_tokens(bench.tokens)}"] = partial(decoder.generate, own)
    group: Group = {
        "key": "steps",
        "title": f"(g) decoding steps ({bench.tokens - 1} of them are the difference)",
        "base": f"{BLOCK}, {_tokens(1)}",
        "times": in_turns(contenders, repeats, tell),
    }
    block = step_bytes(bench, experts=False)
    return [group], {"rows": len(rows), "bytes": {BLOCK: block, OURS: step_bytes(bench, experts=True)}}


def against_instructblip(bench: Workbench, repeats: int, tell: Tell) -> list[Group]:
    """(e): transformers' own InstructBLIP at the same shapes, its one caption beside the base LM's one."""
    from .instructblip import InstructBlip

    peer = InstructBlip(bench)
    times = in_turns({BLOCK: peer.ours, INSTRUCTBLIP: peer.theirs}, repeats, tell)
    return [{"key": "instructblip", "title": "(e) 1 caption from the same tensors", "base": BLOCK, "times": times}]


def against_llama_cpp(
    bench: Workbench, decoders: Decoders, gguf: Path, threads: int, repeats: int, tell: Tell
) -> tuple[list[Group], dict[str, Any]]:
    """(f): llama.cpp beside transformers' own causal LM and our base LM, after a prompt of as many tokens; from the file as
    it is and from one of float32 weights."""
    from .llama_cpp import decode, file_facts, llama, write_float

    one = expert_rows(bench, bench.inputs(1, expert_inputs=True)).of([0])
    prompt, few = one.embeds.shape[1], {"min_new_tokens": 1, "max_new_tokens": 1}
    context = prompt + bench.tokens + 8
    with TemporaryDirectory() as folder:
        as_float = Path(folder) / "float32.gguf"
        write_float(gguf, as_float)
        contenders: dict[str, Callable[[], Any]] = {}
        facts = {}
        for count in (1, bench.tokens):
            lengths = few if count == 1 else {}
            contenders[f"transformers, {_tokens(count)}"] = partial(decoders.plain.generate, one, **lengths)
            contenders[f"{BLOCK}, {_tokens(count)}"] = partial(decoders.block.generate, one, **lengths)
        own = file_facts(gguf)
        most = max(own["types"], key=own["types"].__getitem__)
        for name, file in (("llama.cpp, float32", as_float), (f"llama.cpp, the file ({most})", gguf)):
            facts[name] = file_facts(file)
            model = llama(file, threads, context)
            for count in (1, bench.tokens):
                contenders[f"{name}, {_tokens(count)}"] = decode(model, prompt, count)
        times = in_turns(contenders, repeats, tell)
    base = f"transformers, {_tokens(bench.tokens)}"
    title = f"(f) decoding 1 row after {prompt} tokens, by the LLM alone"
    return [{"key": "llama.cpp", "title": title, "base": base, "times": times}], facts


def step_bytes(bench: Workbench, experts: bool) -> int:
    """Bytes of weights that a decoding step reads: the decoder's layers, the head, and all low-rank weights (they are
    one masked product). Of the embeddings it reads a row for each token, which is nothing; of weights that have a copy in
    half precision, that copy."""
    model = bench.model
    block = model.model.language_model, model.lm_head
    read = [*model.model.language_model.layers.parameters(), *model.lm_head.parameters()]
    if experts:
        read += [*model.model.router.parameters(), *model.model.experts.parameters()]
    with fast_products(*block):
        layers = [layer for part in block for layer in part.modules()]
        halved = {id(layer.weight) for layer in layers if isinstance(layer, HalfWeightLinear)}
    return sum(weight.numel() * (2 if id(weight) in halved else weight.element_size()) for weight in read)


def _part(tell: Tell, index: int, parts: int, prefix: str) -> Tell:
    """Progress of one of several measurements."""
    return lambda name, share: tell(prefix + name, (index + share) / parts)
