"""Products of linear layers in the form that a processor computes fast; the numbers stay those of float32.

Which form is fast depends on the processor and on how many vectors there are, so it is measured, once on each machine
(`machine_kernels`). `layers.use_fast_kernels` builds it into each layer when a checkpoint is loaded.
"""

import json
import math
import os
import time
from bisect import bisect_left
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import nn

from ..utils.files import cache_folder, parse_json, write_whole


KERNELS = ("torch", "half", "columns")
CHOICES = ("auto", *KERNELS)
KERNELS_VARIABLE = "RSMOE_KERNELS"
CACHE_FILE = "kernels.json"
COUNTS = (1, 3, 8, 24, 64, 256)  # vectors that are measured; any other number is computed as the next of these
MOST_COLUMNS = 8  # vectors that `columns` is for
# What is measured: matrices like nano's, more than a processor's caches hold, as a decoding step reads them.
MEASURED_SHAPE, MEASURED_LAYERS, ROUNDS = (1536, 576), 48, 3
MANY = 64  # so many vectors take longer than reading the weight does: fewer matrices will do
MIN_GAIN = 0.95  # of torch's time: what gains less is not told from noise
MAX_LOSS = 1.1  # of the shortest time: `half` may take it, since the float32 weight need not stay in memory then


Module = TypeVar("Module", bound=nn.Module)


class MachineKernels(NamedTuple):
    """For each of `COUNTS` the kernel of a product with so many vectors.

    Args:
        plain: of any float32 weight.
        half: of a float32 weight made of numbers that half precision has, as of a checkpoint written in float16.
    """

    plain: tuple[str, ...]
    half: tuple[str, ...]

    def of(self, num_vectors: int, packed: Any) -> str:
        """The kernel of a product with so many vectors, of a weight with this copy in half precision, or none."""
        of_counts = self.plain if packed is None else self.half
        return of_counts[min(bisect_left(COUNTS, num_vectors), len(COUNTS) - 1)]


def half_product(x: torch.Tensor, packed: Any) -> torch.Tensor:
    """The product of the kernel `half` with a weight of `packing.py`."""
    return torch.ops.quantized.linear_dynamic_fp16.default(x, packed)


def retyped(module: nn.Module, kind: type[Module]) -> Module:
    """The module as one of another class; its parts, weights and hooks are the same objects."""
    other = kind.__new__(kind)
    other.__dict__.update(module.__dict__)
    return other


class FastLinear(nn.Linear):
    """A linear layer whose products without gradients are computed by the kernels of this machine. In every other
    respect it is an `nn.Linear`: it trains, saves, merges and compiles as one.

    - `torch`: torch's own.
    - `half`: a weight of numbers that half precision has is read from a copy in half precision, half as many bytes,
      and computed in float32 (FBGEMM).
    - `columns`: on processors without AVX-512 MKL's product of 2 to 8 vectors takes up to twice as long as that of
      one, though it reads the same weight; with the weight as the left factor it does not, least of all where they are
      a multiple of 4. That of one is faster in several blocks of the weight, where the weight is not longer than wide.
    """

    kernels: MachineKernels
    packed: Any = None  # the copy in half precision; set by `layers.Refresh`

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or x.dtype != torch.float32:
            return super().forward(x)
        num_vectors = x.numel() // self.in_features
        kernel = self.kernels.of(num_vectors, self.packed)
        return half_product(x, self.packed) if kernel == "half" else self.product(kernel, x, num_vectors)

    @property
    def weights(self) -> tuple[torch.Tensor, ...]:
        """What `packed` is a copy of."""
        return (self.weight,)

    def product(self, kernel: str, x: torch.Tensor, num_vectors: int) -> torch.Tensor:
        """The product with `x` (..., in_features), which holds so many vectors, by the kernel `torch` or `columns`."""
        if kernel == "torch" or not 1 <= num_vectors <= MOST_COLUMNS:
            return super().forward(x)
        columns = x.reshape(num_vectors, -1).t()
        if num_vectors == 1:
            blocks = self._num_blocks()
            if blocks == 1:
                return super().forward(x)
            product = torch.bmm(self.weight.view(blocks, -1, self.in_features), columns.expand(blocks, -1, 1))
            return product.view(*x.shape[:-1], -1)
        if num_vectors % 4 == 3 and self.out_features > self.in_features:  # one of zeros more
            columns = F.pad(columns.t(), (0, 0, 0, 1)).t()
        # The next product needs vectors that lie together again.
        product = torch.mm(self.weight, columns)[:, :num_vectors].t().contiguous()
        return product.view(*x.shape[:-1], -1)

    def _num_blocks(self) -> int:
        if self.in_features > self.out_features:
            return 1
        return next((blocks for blocks in (8, 6, 4, 3, 2) if self.out_features % blocks == 0), 1)

    def __getstate__(self) -> dict[str, Any]:
        # A copy or a pickle makes a packed weight of its own.
        return {name: value for name, value in self.__dict__.items() if name != "packed"}

    @classmethod
    def of(cls, layer: nn.Linear, kernels: MachineKernels) -> "FastLinear":
        """The layer with these kernels; weight and hooks are the same objects."""
        fast = retyped(layer, cls)
        fast.kernels = kernels
        return fast


def kernels_of(kernels: str | None = None) -> MachineKernels:
    """What `layers.use_fast_kernels` takes `kernels` for."""
    kernels = check_kernels(kernels)
    if kernels == "auto":
        return machine_kernels(torch.get_num_threads())
    return MachineKernels(
        *(tuple(kernels if kernels in able else "torch" for able in _able(half)) for half in (False, True))
    )


def check_kernels(kernels: str | None) -> str:
    """One of `CHOICES`: what is given, else what the environment says."""
    kernels = kernels or os.environ.get(KERNELS_VARIABLE) or "auto"
    if kernels not in CHOICES:
        raise ValueError(f"kernels {kernels!r} are not known; give one of {', '.join(CHOICES)} (${KERNELS_VARIABLE}).")
    return kernels


def _able(is_half: bool) -> list[tuple[str, ...]]:
    """The kernels that can compute a product of each of `COUNTS`; torch's first."""
    half = ("half",) if is_half and "fbgemm" in torch.backends.quantized.supported_engines else ()
    return [("torch", *half, *(("columns",) if count <= MOST_COLUMNS else ())) for count in COUNTS]


# ---- measuring


@lru_cache
def machine_kernels(threads: int) -> MachineKernels:
    """The fast kernels of this machine, from the cache or measured now, in about a second.

    Args:
        threads: that torch computes with.
    """
    processor = torch.cpu.get_capabilities().get("cpu_name") or "processor"
    capability = torch.backends.cpu.get_cpu_capability()
    key = f"{processor} {capability}, torch {torch.__version__}, {threads} threads"
    file = cache_folder() / CACHE_FILE
    try:
        known = parse_json(file.read_bytes())
        if (kept := _kept(known[key])) is not None:
            return kept
    except (OSError, ValueError, KeyError, TypeError):
        known = {}
    measured = _measured()
    try:
        write_whole(file, json.dumps({**known, key: measured._asdict()}, indent=1))
    except OSError:
        pass  # measured again by the next process
    return measured


def _kept(value: Any) -> MachineKernels | None:
    """What stands in the cache's file; None where it is nothing that could be used here."""
    kernels = MachineKernels(tuple(value["plain"]), tuple(value["half"]))
    for is_half, of_counts in enumerate(kernels):
        able = _able(bool(is_half))
        if len(of_counts) != len(able) or any(kernel not in some for kernel, some in zip(of_counts, able)):
            return None
    return kernels


@torch.inference_mode()
def _measured() -> MachineKernels:
    generator = torch.Generator().manual_seed(0)
    rows, columns = MEASURED_SHAPE
    layers = []
    for _ in range(MEASURED_LAYERS):
        linear = nn.Linear(columns, rows, bias=False, device="meta")
        weight = torch.randn(rows, columns, generator=generator).half().float()
        linear.weight = nn.Parameter(weight, requires_grad=False)
        layers.append(FastLinear.of(linear, MachineKernels((), ())))
    able = _able(True)
    if "half" in able[0]:
        for layer in layers:
            layer.packed = torch.ops.quantized.linear_prepack_fp16(layer.weight.clone(), None)
    seconds = [_seconds(layers, count, kernels) for count, kernels in zip(COUNTS, able)]
    plain = [{kernel: value for kernel, value in of_count.items() if kernel != "half"} for of_count in seconds]
    return MachineKernels(tuple(map(_fastest, plain)), tuple(map(_fastest, seconds)))


def _seconds(layers: list[FastLinear], count: int, kernels: tuple[str, ...]) -> dict[str, float]:
    """The shortest time of each kernel for the products of all layers with so many vectors."""
    x = torch.ones(count, 1, layers[0].in_features)
    layers = layers[: len(layers) // 8] if count >= MANY else layers
    found = dict.fromkeys(kernels, float("inf"))
    for _ in range(ROUNDS):
        for kernel in kernels:
            start = time.perf_counter()
            for layer in layers:
                half_product(x, layer.packed) if kernel == "half" else layer.product(kernel, x, count)
            found[kernel] = min(found[kernel], time.perf_counter() - start)
    return found


def _fastest(seconds: dict[str, float]) -> str:
    best = min(seconds, key=lambda kernel: seconds[kernel])
    if seconds.get("half", math.inf) <= MAX_LOSS * seconds[best]:
        return "half"
    return best if seconds[best] < MIN_GAIN * seconds["torch"] else "torch"
