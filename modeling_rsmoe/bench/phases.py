"""Where the time of one caption goes: its phases, and within a decoding step what is not matrix products."""

import os
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch

from .names import BLOCK, OURS
from .peers import Decoders
from .timing import Group, Tell, Times, in_turns
from .workbench import Workbench, encoded, ends, expert_rows, modes, router_rows, trimmed


WHOLE = "whole"
# Operations of a profile by what they are for; what is in no list is "the rest".
KINDS = {
    "matrix products": (
        "aten::addmm",
        "aten::mm",
        "aten::bmm",
        "aten::linear",
        "aten::matmul",
        "aten::baddbmm",
        "quantized::linear",
    ),
    "attention": ("aten::_scaled_dot_product", "aten::scaled_dot_product", "aten::_softmax", "aten::softmax"),
    "cache and copies": (
        "aten::cat",
        "aten::copy_",
        "aten::index_copy_",
        "aten::clone",
        "aten::contiguous",
        "aten::to",
    ),
    "norms, activations, sums": (
        "aten::mul",
        "aten::add",
        "aten::pow",
        "aten::mean",
        "aten::rsqrt",
        "aten::silu",
        "aten::neg",
    ),
}
Clocks = tuple[float, float]  # seconds by the clock, of the processor


def _now() -> Clocks:
    return time.perf_counter(), time.process_time()


class Phases:
    """One caption of one image, timed where it passes from one phase to the next: a streamer that `generate` tells.

    The ViT and the Q-Former are timed by hooks; each phase of the LLM is what lies between two steps, without them.
    """

    def __init__(self, bench: Workbench):
        self.bench = bench
        self.file = encoded(bench.some(1)[0])
        encoder = bench.model.model.encoder
        self.parts = {"ViT": encoder.vision_model, "Q-Former": encoder.qformer}

    def put(self, value: torch.Tensor) -> None:
        """Of the final text; only its end matters."""

    def end(self) -> None:
        """The final text is told as a whole."""

    def put_step(self, name: str, ids: torch.Tensor) -> None:
        self._close({"router_prompts": "router", "parts": "experts"}[name])

    def __call__(self, mode: tuple[str, str]) -> dict[str, Clocks]:
        """Seconds of every phase, in order."""
        from ..prompting_rsmoe import DEFAULT_INSTRUCTION
        from ..utils.images import read_image

        bench = self.bench
        self.spent: dict[str, Clocks] = {}
        self.inside = (0.0, 0.0)
        began = self.since = _now()
        picture = read_image(self.file)
        bench.processor.image_processor(picture, return_tensors="pt")
        self._close("image: decode, resize, normalise")
        # Made again with the texts: what is left without the picture is the texts'.
        picture_again = _now()
        bench.processor.image_processor(picture, return_tensors="pt")
        twice = _minus(_now(), picture_again)
        self.since = _now()
        inputs = bench.processor(images=picture, text=DEFAULT_INSTRUCTION, return_tensors="pt")
        self.inside = twice
        self._close("texts to tokens")
        inputs = inputs.to(bench.model.device, bench.model.dtype)
        hooks = [hook for name, part in self.parts.items() for hook in self._timed(name, part)]
        try:
            bench.full_of(inputs, *mode)(streamer=self)
        finally:
            for hook in hooks:
                hook.remove()
        self._close("composing")
        spent = {**self.spent, WHOLE: _minus(_minus(_now(), began), _plus(twice, twice))}
        order = [
            "image: decode, resize, normalise",
            "texts to tokens",
            *self.parts,
            "router",
            "experts",
            "composing",
            WHOLE,
        ]
        return {name: spent[name] for name in order if name in spent}

    def _timed(self, name: str, part: torch.nn.Module) -> list[Any]:
        began: list[Clocks] = []

        def leave(*_: Any) -> None:
            spent = _minus(_now(), began.pop())
            self.spent[name] = _plus(self.spent.get(name, (0.0, 0.0)), spent)
            self.inside = _plus(self.inside, spent)

        return [
            part.register_forward_pre_hook(lambda *_: began.append(_now())),
            part.register_forward_hook(leave),
        ]

    def _close(self, name: str) -> None:
        """What passed since the last phase, without what was inside of it, is the phase `name`."""
        now = _now()
        self.spent[name] = _plus(self.spent.get(name, (0.0, 0.0)), _minus(_minus(now, self.since), self.inside))
        self.since, self.inside = now, (0.0, 0.0)


def _plus(one: Clocks, other: Clocks) -> Clocks:
    return one[0] + other[0], one[1] + other[1]


def _minus(one: Clocks, other: Clocks) -> Clocks:
    return one[0] - other[0], one[1] - other[1]


@torch.no_grad()
def lengths(bench: Workbench) -> dict[str, Any]:
    """Tokens of the rows of one image, and of the prompts that the router writes."""
    inputs, stop = bench.inputs(1, expert_inputs=True), ends(bench)
    prompts = trimmed(bench.full_of(inputs)(return_dict_in_generate=True).router_prompts[0], stop)
    return {
        "base LM's row": bench.inputs(1, expert_inputs=False)["input_ids"].shape[1],
        "router's rows": router_rows(bench, inputs).mask.sum(1).tolist(),
        "router's prompts": [len(prompt) for prompt in prompts],
        "experts' rows": expert_rows(bench, inputs, prompts if all(prompts) else None).mask.sum(1).tolist(),
    }


def phases(bench: Workbench, repeats: int, tell: Tell) -> list[Group]:
    """Phases of one caption in every mode, in turn."""
    run, every = Phases(bench), modes(bench.fusions)
    found: dict[str, dict[str, Times]] = {name: {} for name in every}
    runs = [(turn, name) for turn in range(repeats + 1) for name in every]
    for index, (turn, name) in enumerate(runs):
        tell(name, index / len(runs))
        for phase, (wall, cpu) in run(every[name]).items():
            times = found[name].setdefault(phase, {"first": wall, "wall": [], "cpu": []})
            if turn:
                times["wall"].append(wall)
                times["cpu"].append(cpu)
    return [
        {"key": f"phases: {name}", "title": f"phases of 1 caption: {name}", "base": WHOLE, "times": times}
        for name, times in found.items()
    ]


# ---- inside a decoding step


def products(bench: Workbench, repeats: int, tell: Tell, images: int = 1) -> list[Group]:
    """The matrix products of one decoding step alone, by the model's own linear layers, without what is between them: of
    one row by the base LM, and of the experts' rows with and without the low-rank products."""
    from ..decoding_rsmoe import fast_products

    model, rows = bench.model, images * len(bench.processor.experts)
    readers = torch.arange(rows, device=model.device) % len(bench.processor.experts) + 2
    contenders = {
        f"{BLOCK}, 1 row": _products(bench, 1, None),
        f"{BLOCK}, {rows} rows": _products(bench, rows, None),
        f"with experts, {rows} rows": _products(bench, rows, model.model.get_adapter_gate(readers)),
    }
    with (
        torch.inference_mode(),
        model.model.rows.stacked_once(),
        fast_products(model.model.language_model, model.lm_head),
    ):
        times = in_turns(contenders, 5 * repeats, tell)
    return [{"key": "products", "title": "matrix products of one step", "base": f"{BLOCK}, 1 row", "times": times}]


def _products(bench: Workbench, rows: int, gate: torch.Tensor | None) -> Callable[[], None]:
    """Every linear layer of the decoder and the head, over `rows` rows of one token."""
    model = bench.model
    layers = [each for each in model.model.language_model.modules() if isinstance(each, torch.nn.Linear)]
    layers.append(model.lm_head)
    dtype = model.lm_head.weight.dtype
    widths = {layer.in_features for layer in layers}
    given = {width: torch.randn(rows, 1, width, device=model.device, dtype=dtype) for width in widths}

    def run() -> None:
        model.model.rows.gate = gate  # as a layer's attention sets it
        for layer in layers:
            layer(given[layer.in_features])
        model.model.rows.gate = None

    return run


@torch.no_grad()
def operations(bench: Workbench, decoders: Decoders) -> dict[str, dict[str, float]]:
    """Shares of a decode's time by kind of operation, by torch's profiler; Python and the profiler itself are what is left.

    A profile slows down what it looks at, Python most: shares, not seconds, and Python's is an upper bound.
    """
    rows = expert_rows(bench, bench.inputs(1, expert_inputs=True))
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler tells on stderr that it begins and ends
    found = {}
    for name, decoder, own in ((BLOCK, decoders.block, rows.of([0])), (OURS, decoders[OURS], rows)):
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            began = time.perf_counter()
            decoder.generate(own)
            whole = time.perf_counter() - began
        spent: dict[str, float] = defaultdict(float)
        for event in profile.key_averages():
            kind = next((kind for kind, starts in KINDS.items() if event.key.startswith(starts)), "other operations")
            spent[kind] += event.self_cpu_time_total / 1e6
        spent["Python between operations"] = max(0.0, whole - sum(spent.values()))
        total = sum(spent.values())
        found[name] = {kind: spent[kind] / total for kind in sorted(spent, key=spent.__getitem__, reverse=True)}
    return found
