"""Latency, throughput and peers: the full model and its decoders, timed in rounds."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ..inference.layers import linear_products
from . import names
from .instructblip import INPUTS, instructblip_like
from .llama_cpp import TYPES, decode, file_facts, llama, write_as
from .machine import read_rates
from .names import count
from .peers import DECODERS, decoder, one_after_another
from .phases import phases, prompt_lengths
from .smolvlm import DEFAULT_TILES, SIZES, smolvlm, smolvlm_caption
from .timing import Group
from .workbench import Sequences, Workbench, expert_sequences, modes


IMAGES = (1, 4, 8, 16, 32)
MOST_IMAGES = 64  # of the full model alone, once, for the curve
WARM_IMAGES = 8  # a round of larger batches takes long, and smaller ones have warmed up
DECODER_IMAGES = (1, 8)  # 3 and 24 sequences with three experts
Runs = dict[str, Callable[[], Any]]


def latency(bench: Workbench) -> tuple[list[Group], dict[str, Any]]:
    """From one image to one text, in every mode; and its phases."""
    variants = {names.BASE: bench.base()}
    variants |= {name: bench.full(1, *mode) for name, mode in modes(bench.fusions).items()}
    variants[f"full, router, rewrite, {names.PLAIN_SEARCH}"] = bench.without_kernels().full(1, "generated", "rewrite")
    group: Group = {**bench.measure("latency", "1 image", variants), "captions": 1}
    return [group, *phases(bench)], {"lengths": prompt_lengths(bench)}


def throughput(bench: Workbench) -> tuple[list[Group], dict[str, Any]]:
    """From some images in one batch to as many texts."""
    groups: list[Group] = []
    for images in IMAGES:
        variants = {names.BASE: bench.base(images)}
        variants |= {name: bench.full(images, *mode) for name, mode in modes(["concat"]).items()}
        title, warm = count(images, "image"), images <= WARM_IMAGES
        groups.append({**bench.measure(f"images: {images}", title, variants, warm=warm), "captions": images})
    key, title = f"images: {MOST_IMAGES}", count(MOST_IMAGES, "image")
    group = bench.measure(key, title, {names.FULL: bench.full(MOST_IMAGES)}, repeats=1, warm=False)
    return [*groups, {**group, "captions": MOST_IMAGES}], {}


def peers(bench: Workbench) -> tuple[list[Group], dict[str, Any]]:
    """What other programs do with the same weights, (a) to (g), and another model (h)."""
    groups = [sequential(bench, images) for images in DECODER_IMAGES]
    groups += [decoding(bench, images) for images in DECODER_IMAGES]
    groups.append(against_instructblip(bench))
    groups += against_smolvlm(bench)
    group, floor = steps(bench)
    groups.append(group)
    floor["bytes_per_second"] = read_rates(str(bench.model.device), max(3, bench.repeats), bench.progress)
    facts: dict[str, Any] = {"floor": floor}
    if bench.gguf is not None:
        group, facts["gguf"] = against_llama_cpp(bench, bench.gguf)
        groups.append(group)
    return groups, facts


def sequential(bench: Workbench, images: int) -> Group:
    """(b): all sequences in one batch against router and experts one after another, image by image, from the same
    tensors; and what our own search and products save."""
    inputs = bench.inputs(images, expert_inputs=True)
    variants: Runs = {
        names.ONE_BATCH: bench.full_of(inputs),
        f"{names.ONE_BATCH}, {names.PLAIN_SEARCH}": bench.without_kernels().full_of(inputs),
        names.ONE_AFTER_ANOTHER: partial(one_after_another, bench, inputs),
    }
    title = f"(b) router and experts, {count(images, 'image')}"
    return bench.measure(f"sequential: {images}", title, variants, warm=images == 1)


def decoding(bench: Workbench, images: int) -> Group:
    """(a), (c), (d): decoders of the experts' sequences; also the base LM alone, of as many sequences and of one."""
    sequences = expert_sequences(bench, bench.inputs(images, expert_inputs=True))
    decoders = [name for name in DECODERS if name != names.ONE_BY_ONE or images == 1]
    variants = {name: partial(decoder(bench, name).generate, sequences) for name in decoders}
    for several in (sequences, sequences.select([0])):
        variants[f"{names.BASE}, {count(len(several), 'sequence')}"] = partial(
            decoder(bench, names.BASE).generate, several
        )
    title = f"(a), (c), (d) decoding {count(len(sequences), 'sequence')} of experts"
    return bench.measure(f"sequences: {images}", title, variants)


def against_instructblip(bench: Workbench) -> Group:
    """(e): transformers' own InstructBLIP at the same shapes, its one caption beside the base LM's."""
    model: Any = bench.model
    inputs = bench.inputs(1, expert_inputs=False)
    inputs = {name: inputs[name] for name in INPUTS}
    peer = instructblip_like(model.config, inputs["pixel_values"].shape[-1], model.dtype).to(model.device)
    variants: Runs = {
        names.BASE: partial(model.generate, **inputs, **bench.lengths, **bench.search),
        names.INSTRUCTBLIP: partial(peer.generate, **inputs, **bench.lengths),
    }
    return bench.measure("instructblip", "(e) 1 caption from the same tensors", variants)


def against_smolvlm(bench: Workbench) -> list[Group]:
    """(h): SmolVLM's caption of one tile beside ours, from one image; and of as many tiles as its default makes."""
    model: Any = bench.model
    fusion = "rerank" if "rerank" in bench.fusions else "concat"
    variants: Runs = {f"full, router, {fusion}": bench.full(1, "generated", fusion)}
    peers = {size: smolvlm(size, model.dtype).to(model.device) for size in SIZES}
    one = {f"{size}, 1 tile": smolvlm_caption(peer, 1, bench.tokens) for size, peer in peers.items()}
    many = {
        f"{size}, {DEFAULT_TILES} tiles": smolvlm_caption(peer, DEFAULT_TILES, bench.tokens)
        for size, peer in peers.items()
    }
    title = "(h) 1 caption by SmolVLM's shapes"
    return [
        bench.measure("smolvlm", title, variants | one),
        bench.measure("smolvlm: default", f"{title}, its default", many, repeats=1, warm=False),
    ]


def steps(bench: Workbench) -> tuple[Group, dict[str, Any]]:
    """(g): the time of a decoding step, from texts of 1 and of `tokens` tokens, and the bytes of weights it reads."""
    sequences = expert_sequences(bench, bench.inputs(1, expert_inputs=True))
    variants = {**_lengths(bench, names.BASE, sequences.select([0])), **_lengths(bench, names.RSMOE, sequences)}
    group = bench.measure("steps", f"(g) decoding steps ({bench.tokens - 1} of them are the difference)", variants)
    sizes = {names.BASE: step_bytes(bench, experts=False), names.RSMOE: step_bytes(bench, experts=True)}
    return group, {"sequences": len(sequences), "bytes": sizes}


def _lengths(bench: Workbench, name: str, sequences: Sequences) -> Runs:
    """A decoder's runs to 1 token and to as many as the bench's texts have."""
    generate = partial(decoder(bench, name).generate, sequences)
    return {
        f"{name}, {count(tokens, 'token')}": partial(generate, min_new_tokens=tokens, max_new_tokens=tokens)
        for tokens in (1, bench.tokens)
    }


def against_llama_cpp(bench: Workbench, gguf: Path) -> tuple[Group, dict[str, Any]]:
    """(f): llama.cpp beside transformers' own causal LM, our base LM and the experts' sequences, after a prompt of as
    many tokens; from the file as it is and from others of its weights."""
    sequences = expert_sequences(bench, bench.inputs(1, expert_inputs=True))
    one = sequences.select([0])
    prompt, types, facts = one.embeds.shape[1], file_facts(gguf)["types"], {}
    variants: Runs = {**_lengths(bench, names.TRANSFORMERS, one), **_lengths(bench, names.BASE, one)}
    variants |= _lengths(bench, names.RSMOE, sequences)
    with TemporaryDirectory() as folder:
        files = {f"the file ({max(types, key=types.__getitem__)})": gguf}
        for weight_type in TYPES:
            files[weight_type] = Path(folder) / f"{weight_type}.gguf"
            write_as(gguf, files[weight_type], weight_type)
        for kind, file in files.items():
            name = names.LLAMA_CPP.format(kind)
            facts[name] = file_facts(file)
            model = llama(file, bench.threads, prompt + bench.tokens + 8)
            for tokens in (1, bench.tokens):
                variants[f"{name}, {count(tokens, 'token')}"] = decode(model, prompt, tokens)
        title = f"(f) decoding after {prompt} tokens, by the LLM alone and by the experts of 1 image"
        group = bench.measure("llama.cpp", title, variants)
    return {**group, "base": f"{names.TRANSFORMERS}, {count(bench.tokens, 'token')}"}, facts


def step_bytes(bench: Workbench, experts: bool) -> int:
    """Bytes of weights that a decoding step of a model that has generated reads.

    The decoder's layers, the head, and the experts' low-rank weights, which are one masked product. Of the embeddings
    it reads one vector for each token, which is nothing; of weights that have a copy in half precision, that copy.
    """
    model: Any = bench.model
    weights = [*model.model.language_model.layers.parameters(), *model.lm_head.parameters()]
    if experts:
        weights += model.model.experts.parameters()
    packed = [each for each in linear_products(model.modules()) if getattr(each, "packed", None) is not None]
    halved = {id(weight) for reader in packed for weight in reader.weights}
    return sum(weight.numel() * (2 if id(weight) in halved else weight.element_size()) for weight in weights)
