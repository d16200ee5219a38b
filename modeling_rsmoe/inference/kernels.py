"""Products of linear layers in the form that a processor computes fast; the numbers stay those of float32.

`use_fast_kernels` decides once for each layer, when a checkpoint is loaded. A layer so replaced is an `nn.Linear` in
every other respect: it trains, saves, merges and compiles as one.
"""

import os
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.weak import WeakIdKeyDictionary


KERNELS = ("auto", "torch")
KERNELS_VARIABLE = "RSMOE_KERNELS"
SAMPLE_EVERY = 997  # one number in so many is compared, since a change of `weight.data` gives it no new version


class FastLinear(nn.Linear):
    """A linear layer whose products without gradients read the weight as fast as memory allows, or nearer to that.

    A float32 weight made of numbers that half precision has, as of a checkpoint that was written in float16, is read
    from a copy in half precision, half as many bytes, and computed in float32 (FBGEMM). For any other weight: on
    processors without AVX-512, MKL's product of 2 to 8 sequences takes up to twice as long as that of one, though it
    reads the same weight; with the weight as the left factor it does not, least of all where they are a multiple of 4.
    That of one is faster in several blocks of the weight, where the weight is not longer than wide.
    """

    packed: Any = None  # the copy in half precision; set by `Refresh`

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or x.dtype != torch.float32:
            return super().forward(x)
        if self.packed is not None:
            return torch.ops.quantized.linear_dynamic_fp16(x, self.packed)
        num_vectors = x.numel() // self.in_features
        if not 1 <= num_vectors <= 8:
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


class Refresh:
    """Pre-hook of a model: before it reads a prompt, the packed weights of the replaced layers are those of its weights."""

    def __init__(self, layers: list[FastLinear]):
        self.layers = layers

    def __call__(self, module, args, kwargs) -> None:
        tokens = kwargs.get("input_ids") if kwargs.get("input_ids") is not None else kwargs.get("inputs_embeds")
        if torch.compiler.is_compiling() or torch.is_grad_enabled() or tokens is None or tokens.shape[1] == 1:
            return
        can_pack = "fbgemm" in torch.backends.quantized.supported_engines
        for layer in self.layers:
            layer.packed = _packed(layer.weight) if can_pack and _is_plain(layer.weight) else None


class _Packed(NamedTuple):
    """Which numbers of a weight were packed; None where it has numbers that half precision has not."""

    state: tuple[int, int]
    sample: torch.Tensor
    weight: Any


_PACKED = WeakIdKeyDictionary()  # weight -> _Packed: layers and models that share a weight share its copy


def _packed(parameter: torch.Tensor) -> Any:
    """The packed copy of a weight, made once, and again when the weight has changed."""
    weight = parameter.detach()
    state = weight.data_ptr(), 0 if weight.is_inference() else weight._version
    sample = weight.flatten()[::SAMPLE_EVERY]
    known = _PACKED.get(parameter)
    if known is None or known.state != state or not torch.equal(known.sample, sample):
        # A few numbers tell of most weights that they do not fit.
        fits = all(torch.equal(numbers.half().float(), numbers) for numbers in (sample, weight))
        packed = torch.ops.quantized.linear_prepack_fp16(weight, None) if fits else None
        known = _PACKED[parameter] = _Packed(state, sample.clone(), packed)
    return known.weight


def _is_plain(weight: torch.Tensor) -> bool:
    """Quantised and split weights have products of their own."""
    return type(weight) is nn.Parameter and (weight.device.type, weight.dtype) == ("cpu", torch.float32)


def is_slow(layer: nn.Module) -> bool:
    """Whether torch's own product of this layer is slow here: a float32 weight on a processor with AVX2 and no more."""
    is_linear = type(layer) is nn.Linear and layer.bias is None and _is_plain(layer.weight)
    return is_linear and torch.backends.cpu.get_cpu_capability() == "AVX2"


def use_fast_kernels(model: nn.Module, kernels: str | None = None) -> int:
    """Replace the slow linear layers of the language model and its head. Safe to call again.

    Args:
        model: an `RSMoEForConditionalGeneration`.
        kernels: `"auto"`, or `"torch"` to leave all layers as they are; by default what `$RSMOE_KERNELS` says, else
            auto.

    Returns:
        How many layers were replaced.
    """
    kernels = kernels or os.environ.get(KERNELS_VARIABLE) or "auto"
    if kernels not in KERNELS:
        raise ValueError(f"kernels {kernels!r} are not known; give one of {', '.join(KERNELS)} (${KERNELS_VARIABLE}).")
    if kernels == "torch":
        return 0
    replaced: list[FastLinear] = []
    decoder: Any = model.get_decoder()  # type: ignore[operator]
    for parent in [*decoder.modules(), model]:
        for name, child in parent.named_children():
            if is_slow(child):
                fast = FastLinear.__new__(FastLinear)
                fast.__dict__.update(child.__dict__)  # weight and hooks are the same objects
                setattr(parent, name, fast)
                replaced.append(fast)
    if replaced:
        model.register_forward_pre_hook(Refresh(replaced), with_kwargs=True)
    return len(replaced)
