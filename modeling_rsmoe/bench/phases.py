"""Where the time of one caption goes: its phases, and within a decoding step what is not matrix products."""

import os
import time
from collections import defaultdict
from functools import partial
from io import BytesIO
from typing import Any

import numpy as np
import torch

from ..adapters_rsmoe import SelectAdapters
from ..inference.layers import linear_products
from ..low_rank_rsmoe import clear_selection, stacked_adapters
from ..prompting_rsmoe import DEFAULT_INSTRUCTION
from ..utils.images import read_image
from .names import BASE, RSMOE, count
from .peers import decoder
from .timing import Group, Seconds, now, phases_in_rounds
from .workbench import Workbench, expert_sequences, modes, router_sequences, until_end


TOTAL = "total"
PHASES = ("image: decode, resize, normalise", "texts to tokens", "ViT", "Q-Former", "router", "experts", "fusion")
# Operations of a profile by what they are for, as their names begin.
OPERATIONS = {
    "matrix products": "aten::addmm aten::mm aten::bmm aten::linear aten::matmul aten::baddbmm quantized::linear",
    "attention": "aten::_scaled_dot_product aten::scaled_dot_product aten::_softmax aten::softmax",
    "cache and copies": "aten::cat aten::copy_ aten::index_copy_ aten::clone aten::contiguous aten::to",
    "norms, activations, sums": "aten::mul aten::add aten::pow aten::mean aten::rsqrt aten::silu aten::neg",
    "other operations": "",
}


class Phases:
    """One caption of one image, timed where it passes from one phase to the next: a streamer of `generate`.

    The Q-Former is timed by hooks; each phase of the LLM is what lies between two steps, without it.
    """

    def __init__(self, bench: Workbench):
        self.bench = bench
        self.features = bench.model.encode_image(bench.inputs(1, expert_inputs=False)["pixel_values"])
        file = BytesIO()
        bench.images[0].save(file, "JPEG", quality=90)
        self.file = file.getvalue()

    def put(self, value: torch.Tensor) -> None:
        """Tokens of the final text, whose time is that of the fusion."""

    def end(self) -> None:
        """The end of the final text: `generate` returns."""

    def put_step(self, name: str, ids: torch.Tensor) -> None:
        """Router prompts or expert texts are written."""
        self._close({"router_prompts": "router", "expert_texts": "experts"}[name])

    @torch.no_grad()
    def run(self, router_mode: str, fusion: str) -> dict[str, Seconds]:
        """Seconds of every phase, in order."""
        bench, model = self.bench, self.bench.model
        self.spent = dict.fromkeys(PHASES, np.zeros(2))
        self.qformer = np.zeros(2)  # of the phase that has begun
        began = self.since = now()
        image = bench.processor.image_processor(read_image(self.file), return_tensors="pt")
        self._close("image: decode, resize, normalise")
        inputs = bench.processor(image_embeds=self.features, text=DEFAULT_INSTRUCTION, return_tensors="pt")
        inputs, image = (tensors.to(model.device, model.dtype) for tensors in (inputs, image))
        self._close("texts to tokens")
        inputs["image_embeds"] = model.encode_image(image["pixel_values"])
        self._close("ViT")
        qformer, starts = model.model.encoder.qformer, []
        hooks = [
            qformer.register_forward_pre_hook(lambda *_: starts.append(now())),
            qformer.register_forward_hook(lambda *_: self._add_qformer(now() - starts.pop())),
        ]
        try:
            bench.full_of(inputs, router_mode, fusion)(streamer=self)
        finally:
            for hook in hooks:
                hook.remove()
        self._close("fusion")
        return {**self.spent, TOTAL: now() - began}

    def _add_qformer(self, seconds: Seconds) -> None:
        self.spent["Q-Former"] = self.spent["Q-Former"] + seconds
        self.qformer = self.qformer + seconds

    def _close(self, name: str) -> None:
        """What passed since the last phase, without the Q-Former, is the phase `name`."""
        began, self.since = self.since, now()
        self.spent[name] = self.since - began - self.qformer
        self.qformer = np.zeros(2)


def phases(bench: Workbench) -> list[Group]:
    """Phases of one caption in every mode, in rounds."""
    one = Phases(bench)
    variants = {name: partial(one.run, *mode) for name, mode in modes(bench.fusions).items()}
    times = phases_in_rounds(variants, bench.repeats, bench.progress)
    return [
        {"key": f"phases: {name}", "title": f"phases of 1 caption: {name}", "base": TOTAL, "times": of_mode}
        for name, of_mode in times.items()
    ]


@torch.no_grad()
def prompt_lengths(bench: Workbench) -> dict[str, Any]:
    """Tokens of the sequences of one image, and of the prompts that the router writes."""
    inputs = bench.inputs(1, expert_inputs=True)
    prompts = until_end(bench, bench.full_of(inputs)(return_dict_in_generate=True).router_prompts)
    return {
        "base LM's sequence": bench.inputs(1, expert_inputs=False)["input_ids"].shape[1],
        "router's sequences": router_sequences(bench, inputs).mask.sum(1).tolist(),
        "router's prompts": [len(prompt) for prompt in prompts],
        "experts' sequences": expert_sequences(bench, inputs, prompts if all(prompts) else None).mask.sum(1).tolist(),
    }


# ---- inside a decoding step


def profile(bench: Workbench) -> tuple[list[Group], dict[str, Any]]:
    """The matrix products of one decoding step alone, and shares of a decode's time by torch's profiler."""
    products_group = products(bench)
    bench.progress("torch.profiler")
    return [products_group], {"operations": operations(bench)}


def products(bench: Workbench, images: int = 1) -> Group:
    """The matrix products of a decoding step alone, by the model's linear layers, without what is between them: of one
    sequence by the base LM, and of the experts' sequences with and without the low-rank products."""
    model: Any = bench.model
    bench.base()()  # so that weights have their copies in half precision
    linear = linear_products([*model.model.language_model.modules(), model.lm_head])
    sequences = images * len(bench.processor.experts)
    adapter_ids = torch.arange(sequences, device=model.device) % len(bench.processor.experts) + 2
    experts, select = model.model.adapter_kwargs(adapter_ids, model.dtype), SelectAdapters(None)

    def run(number: int, adapters: dict[str, Any]) -> None:
        weight = model.lm_head.weight
        inputs = {width: weight.new_ones(number, width) for width in {each.in_features for each in linear}}
        select(None, (), adapters)  # as before a layer's attention
        for product in linear:
            product(inputs[product.in_features])
        clear_selection()

    several = count(sequences, "sequence")
    variants = {
        f"{BASE}, 1 sequence": partial(run, 1, {}),
        f"{BASE}, {several}": partial(run, sequences, {}),
        f"with experts, {several}": partial(run, sequences, experts),
    }
    with torch.inference_mode(), stacked_adapters():
        return bench.measure("products", "matrix products of one step", variants, repeats=5 * bench.repeats)


@torch.no_grad()
def operations(bench: Workbench) -> dict[str, dict[str, float]]:
    """Shares of a decode's time by kind of operation; Python and the profiler itself are what is left.

    A profile slows down what it measures, Python most: shares, not seconds, and Python's is an upper bound.
    """
    sequences = expert_sequences(bench, bench.inputs(1, expert_inputs=True))
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler writes to stderr that it begins and ends
    shares = {}
    for name, decoded in ((BASE, sequences.select([0])), (RSMOE, sequences)):
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiled:
            began = time.perf_counter()
            decoder(bench, name).generate(decoded)
            total = time.perf_counter() - began
        spent: dict[str, float] = defaultdict(float)
        for event in profiled.key_averages():
            kind = next(kind for kind, names in OPERATIONS.items() if event.key.startswith(tuple(names.split()) or ""))
            spent[kind] += event.self_cpu_time_total / 1e6
        spent["Python between operations"] = max(0.0, total - sum(spent.values()))
        measured = sum(spent.values())
        largest_first = sorted(spent.items(), key=lambda item: -item[1])
        shares[name] = {kind: seconds / measured for kind, seconds in largest_first}
    return shares
