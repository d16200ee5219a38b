"""The model on the bench: what is measured and how, and its calls with a set number of new tokens.

Texts do not matter here, only their lengths, so images are made by code. The router's prompts end where the router
ends them: that is part of what is measured, and whoever else asks the router gets the same.
"""

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from ..inference.decoding import shrinking_greedy
from ..inference.layers import remove_fast_kernels
from ..prompting_rsmoe import DEFAULT_INSTRUCTION
from ..sequences_rsmoe import by_expert, unpad
from ..utils.progress import Progress, no_progress
from .timing import Group, in_rounds


if TYPE_CHECKING:
    from ..modeling_rsmoe import RSMoEForConditionalGeneration


def made_images(number: int, side: int = 256) -> list[Image.Image]:
    """Fields of one colour with noise, as large as those of most aerial datasets: smooth areas and edges."""
    generator, images = np.random.default_rng(0), []
    for _ in range(number):
        fields = generator.integers(40, 200, (8, 8, 3)).repeat(side // 8, 0).repeat(side // 8, 1)
        pixels = fields + generator.normal(0, 6, (side, side, 1))
        images.append(Image.fromarray(pixels.clip(0, 255).astype(np.uint8)))
    return images


@dataclass
class Workbench:
    """A loaded checkpoint and how it is measured."""

    model: "RSMoEForConditionalGeneration"
    processor: Any
    folder: Path  # the checkpoint's, for processes that load it anew
    tokens: int = 24  # new ones of every caption and expert text, exactly
    router_tokens: int = 24  # new ones of a router prompt, at most
    images: list[Image.Image] = field(default_factory=lambda: made_images(8))  # where more are needed they come again
    repeats: int = 1  # rounds of every group
    threads: int = 1  # of this process and of those that it starts
    progress: Progress = no_progress
    gguf: Path | None = None  # the LLM as a file for llama.cpp
    data: Path | None = None  # a data folder, for the section `training`
    config: Path | None = None  # settings of that training
    plain: bool = False  # whether it is transformers' own search, a step for each token
    decoders: dict[str, Any] = field(default_factory=dict, init=False)  # those of `peers.decoder` so far

    @property
    def lengths(self) -> dict[str, Any]:
        """Arguments of `generate` for greedy texts of exactly `tokens` tokens."""
        return {"min_new_tokens": self.tokens, "max_new_tokens": self.tokens, "do_sample": False, "num_beams": 1}

    @property
    def search(self) -> dict[str, Any]:
        """Arguments of the model's `generate` that say how it searches."""
        # A cache that is named switches prompt lookup off, and is transformers' default.
        return {"cache_implementation": "dynamic"} if self.plain else {"custom_generate": shrinking_greedy}

    @property
    def fusions(self) -> list[str]:
        """Those that the model has."""
        return ["concat", "rewrite"] + (["rerank"] if self.model.model.reranker is not None else [])

    def inputs(self, number: int, expert_inputs: bool) -> Any:
        """What the processor makes of `number` images, on the model's device."""
        images = [self.images[i % len(self.images)] for i in range(number)]
        text = [DEFAULT_INSTRUCTION] * number
        inputs = self.processor(images=images, text=text, expert_inputs=expert_inputs, return_tensors="pt")
        return inputs.to(self.model.device, self.model.dtype)

    def base(self, number: int = 1) -> Callable[[], Any]:
        """From images to the captions of the base LM alone."""
        return lambda: self.model.generate(**self.inputs(number, False), **self.lengths, **self.search)

    def full(self, number: int = 1, router: str = "generated", fusion: str = "concat") -> Callable[[], Any]:
        """From images to the captions of the full model."""
        return lambda: self.full_of(self.inputs(number, True), router, fusion)()

    def full_of(self, inputs: Any, router: str = "generated", fusion: str = "concat") -> Callable[..., Any]:
        """From what the processor made to the captions of the full model."""
        settings = {"router_mode": router, "fusion": fusion, "router_max_new_tokens": self.router_tokens}
        settings |= self.lengths | self.search
        return lambda **arguments: self.model.generate(**inputs, **settings, **arguments)

    def measure(self, key: str, title: str, variants: Mapping[str, Callable[[], Any]], **how: Any) -> Group:
        """Times of some variants, the first of them the base.

        Args:
            key: by which tables and targets find the group.
            title: what the variants do.
            variants: what to run, by name.
            **how: `repeats` and `warm` of `in_rounds`.
        """
        times = in_rounds(variants, **{"repeats": self.repeats, "progress": self.progress, **how})
        return {"key": key, "title": title, "base": next(iter(variants)), "times": times}

    def sharing_weights(self, embeddings: bool = True) -> "Workbench":
        """A copy whose structure can be changed; its weights are the same tensors and take no memory.

        Where its vocabulary will grow, `embeddings` may not be shared: they grow in place.
        """
        shared = {id(tensor): tensor for tensor in [*self.model.parameters(), *self.model.buffers()]}
        if not embeddings:
            for module in (self.model.get_input_embeddings(), self.model.get_output_embeddings()):
                shared.pop(id(module.weight), None)
        return replace(self, model=copy.deepcopy(self.model, shared), processor=copy.copy(self.processor))

    def without_kernels(self) -> "Workbench":
        """The same model by transformers' own search and torch's own products."""
        variant = replace(self.sharing_weights(), plain=True)
        remove_fast_kernels(variant.model)
        return variant


def modes(fusions: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Modes of the full model, router mode and fusion, by the name that tables give them."""
    routers = {"router": "generated", "template": "template"}
    return {f"full, {name}, {fusion}": (router, fusion) for fusion in fusions for name, router in routers.items()}


# ---- sequences for other decoders: written anew here, so that equality is not checked by the code that it checks


@dataclass
class Sequences:
    """Prompts of the adapters of some images, ready to be decoded by any causal LM of the same embeddings."""

    embeds: torch.Tensor  # [sequences, tokens, hidden_size], padded on the left
    mask: torch.Tensor  # [sequences, tokens]
    adapter_ids: torch.Tensor  # [sequences], as of `RSMoEModel.get_adapter_ids`
    experts: list[str]  # the name of each sequence's expert

    def select(self, places: list[int]) -> "Sequences":
        """Those of these places, padded as before."""
        experts = [self.experts[place] for place in places]
        return Sequences(self.embeds[places], self.mask[places], self.adapter_ids[places], experts)

    def __len__(self) -> int:
        return len(self.experts)


def router_sequences(bench: Workbench, inputs: Any) -> Sequences:
    """The router's prompt for each expert of each image, `[images x experts]` sequences."""
    qformer = {name: inputs[name] for name in ("qformer_input_ids", "qformer_attention_mask")}
    experts = len(bench.processor.experts)
    qformer = {name: value.repeat_interleave(experts, 0) for name, value in qformer.items()}
    return _embedded(bench, inputs, without_padding(inputs, "router"), qformer)


def expert_sequences(bench: Workbench, inputs: Any, prompts: list[list[int]] | None = None) -> Sequences:
    """Every expert's prompt of each image, `[images x experts]` sequences: these router prompts, or its template."""
    ids = with_prompts(bench, inputs, prompts or without_padding(inputs, "template_prompt"))
    names = ("qformer_input_ids", "qformer_attention_mask")
    return _embedded(bench, inputs, ids, {name: by_expert(inputs[f"expert_{name}"]).flatten(0, 1) for name in names})


@torch.inference_mode()
def _embedded(bench: Workbench, inputs: Any, ids: list[list[int]], qformer: dict[str, torch.Tensor]) -> Sequences:
    model: Any = bench.model
    padded = bench.processor.tokenizer.pad({"input_ids": ids}, padding_side="left", return_tensors="pt")
    padded = padded.to(model.device)
    experts = list(bench.processor.experts)
    images = model.encode_image(inputs["pixel_values"]).repeat_interleave(len(experts), dim=0)
    features = model.get_image_features(image_embeds=images, return_dict=True, **qformer).pooler_output
    embeds = model.get_input_embeddings()(padded["input_ids"])
    is_image = (padded["input_ids"] == model.config.image_token_id).unsqueeze(-1)
    embeds = embeds.masked_scatter(is_image, features.to(embeds.dtype))
    adapter_ids = model.model.get_adapter_ids(padded["input_ids"])
    return Sequences(embeds, padded["attention_mask"], adapter_ids, experts * (len(ids) // len(experts)))


def without_padding(inputs: Any, kind: str) -> list[list[int]]:
    """Tokens of all sequences of a kind ("router", "expert", "template_prompt")."""
    ids, mask = (by_expert(inputs[f"{kind}_{name}"]).flatten(0, -2) for name in ("input_ids", "attention_mask"))
    return unpad(ids, mask)


def with_prompts(bench: Workbench, inputs: Any, prompts: list[list[int]]) -> list[list[int]]:
    """Tokens of the experts' sequences, each with its prompt in the place of the <prompt> token."""
    sequences = without_padding(inputs, "expert")
    for sequence, prompt in zip(sequences, prompts, strict=True):
        place = sequence.index(bench.model.config.prompt_token_id)
        sequence[place : place + 1] = prompt
    return sequences


def end_tokens(bench: Workbench) -> list[int]:
    """Tokens that end a text; the last of them only pads."""
    config = bench.model.generation_config
    eos = [config.eos_token_id] if isinstance(config.eos_token_id, int) else list(config.eos_token_id or [])
    return [*eos, config.pad_token_id or 0]


def until_end(bench: Workbench, tokens: torch.Tensor) -> list[list[int]]:
    """New tokens `[..., tokens]` up to where each text ends."""
    ends = end_tokens(bench)
    return [list(takewhile(lambda token: token not in ends, text)) for text in tokens.flatten(0, -2).tolist()]
