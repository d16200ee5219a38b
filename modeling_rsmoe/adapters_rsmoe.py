"""How the sequences of one batch are read by several adapters at once, on any Llama-style decoder of transformers.

Each sequence is read by one adapter (the router or an expert), or by the base LM alone. The decoder's layers run once
over all sequences; forward hooks on their linear layers add what each sequence's adapter changes. Nothing here knows
about images, prompts or tokens.
"""

import threading
from contextlib import contextmanager
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import nn
from transformers import DynamicCache, PreTrainedModel

from .errors_rsmoe import RSMoEError
from .experts_rsmoe import LowRank, RSMoEExpert, decoder_layers


FIRST_NORM = "input_layernorm"  # the one module of a decoder layer that runs before its self_attn


class _CallState(threading.local):
    """What the hooks of a decoder layer know of the call that runs it. Each thread has its own, so that several may
    use one model; a layer's hooks set it anew before they read it."""

    gate: torch.Tensor | None = None  # [batch_size, 1, sum of ranks]: the adapter's scaling, 0 in others' columns
    adapter_ids: torch.Tensor | None = None  # [batch_size]; only where there are `full` experts
    norm_input: torch.Tensor | None = None  # [batch_size, sequence_length, hidden_size]: input of the first norm
    stacks: "dict[int, tuple[torch.Tensor, torch.Tensor]] | None" = None  # by hook, for as long as `stacked_adapters`


_STATE = _CallState()


@contextmanager
def stacked_adapters():
    """Within, in this thread: the stacked weights of all adapters are made once, not at every step. Only where no
    weight changes."""
    outer, _STATE.stacks = _STATE.stacks, {} if _STATE.stacks is None else _STATE.stacks
    try:
        yield
    finally:
        _STATE.stacks = outer


class SelectAdapters:
    """Pre-hook of a layer's `self_attn`: takes the adapters of its sequences out of the keyword arguments.

    They travel as keyword arguments, because a checkpointed layer is run again with *its* arguments in the backward
    pass, in another thread at times: set once outside, they would be those of another batch by then (wrong gradients
    without an error).
    """

    def __init__(self, first_norms: dict[int, nn.Module]):
        self.first_norms = first_norms

    def __call__(self, module, args, kwargs):
        kwargs = dict(kwargs)  # attention backends never see our arguments
        _STATE.gate = kwargs.pop("adapter_gate", None)
        _STATE.adapter_ids = kwargs.pop("adapter_ids", None)
        if self.first_norms and _STATE.adapter_ids is not None:
            # The first norm ran before the adapters were known here: sequences of `full` experts get their norm now.
            hidden = kwargs.pop("hidden_states") if "hidden_states" in kwargs else args[0]
            norm_input = cast(torch.Tensor, _STATE.norm_input)
            hidden = replace_outputs(hidden, norm_input, _STATE.adapter_ids, self.first_norms)
            args = (hidden, *args[1:])
        _STATE.norm_input = None
        return args, kwargs


class KeepNormInput:
    """Forward hook of a layer's first norm: keeps its input for `SelectAdapters`."""

    def __call__(self, module, args, output):
        _STATE.norm_input = args[0]


class AddLowRank:
    """Forward hook of a linear layer: adds each sequence's low-rank product, all adapters in one masked pair of
    products. `columns` of the gate belong to `pairs`; None where every adapter with low-rank weights has this
    layer."""

    def __init__(self, pairs: list[LowRank], columns: list[int] | None):
        self.pairs, self.columns = pairs, columns

    def __call__(self, module, args, output):
        gate = _STATE.gate
        if gate is None:
            return output
        if self.columns is not None:
            gate = gate[..., self.columns]
        x = args[0]  # [batch_size, sequence_length, in]
        A, B = self._stack(x)
        low = x @ A  # [batch_size, sequence_length, sum of ranks]
        if is_shard(self.pairs[0].lora_A):  # of inputs that are split: each process has a part of the sum
            dist.all_reduce(low, group=cast(Any, self.pairs[0].lora_A).device_mesh.get_group())
        gate = gate.to(x.device, x.dtype)
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or output.dtype != x.dtype:
            return output + ((low * gate) @ B).to(output.dtype)
        # In place: a new tensor for each product costs as much as the product itself in a long sequence.
        output.view(-1, output.shape[-1]).addmm_(low.mul_(gate).view(-1, low.shape[-1]), B)
        return output

    def _stack(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """All pairs as one, for an input like `x`: A [in, sum of ranks], B [sum of ranks, out]."""
        stacks = None if torch.is_grad_enabled() else _STATE.stacks
        if stacks is not None and id(self) in stacks:
            return stacks[id(self)]
        A = torch.cat([local_shard(pair.lora_A) for pair in self.pairs]).t().to(x.device, x.dtype)
        B = torch.cat([local_shard(pair.lora_B) for pair in self.pairs], dim=1).t().to(x.device, x.dtype)
        if stacks is None:
            return A, B
        return stacks.setdefault(id(self), (A.contiguous(), B.contiguous()))


class ReplaceOutputs:
    """Forward hook of any layer with weights: sequences of a `full` expert get the output of that expert's layer."""

    def __init__(self, layers: dict[int, nn.Module]):
        self.layers = layers

    def __call__(self, module, args, output):
        if _STATE.adapter_ids is None:
            return output
        return replace_outputs(output, args[0], _STATE.adapter_ids, self.layers)


def replace_outputs(
    output: torch.Tensor, x: torch.Tensor, adapter_ids: torch.Tensor, layers: dict[int, nn.Module]
) -> torch.Tensor:
    """`output` [batch_size, ...] with `layer(x)` in the sequences of each layer's adapter."""
    for adapter_id, layer in layers.items():
        sequences = (adapter_ids == adapter_id).nonzero().flatten()
        if sequences.numel():
            output = output.index_copy(0, sequences, layer(x[sequences]).to(output.dtype))
    return output


class RSMoECache(DynamicCache):
    """A cache that remembers which adapter reads each of its sequences: a decoding loop of one's own carries it alone.

    Attributes:
        adapter_ids (`torch.LongTensor` of shape `(batch_size,)`): set when the sequences are read.
        disposable (`bool`): nobody reads it after `generate`, so sequences that have ended may leave it.
    """

    adapter_ids: torch.Tensor | None = None
    disposable: bool = False

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)
        if self.adapter_ids is not None:
            self.adapter_ids = self.adapter_ids.repeat_interleave(repeats)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        super().batch_select_indices(indices)
        if self.adapter_ids is not None:
            self.adapter_ids = self.adapter_ids[indices]

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        super().reorder_cache(beam_idx)
        if self.adapter_ids is not None:
            self.adapter_ids = self.adapter_ids[beam_idx]


def is_shard(weight: torch.Tensor) -> bool:
    """Whether tensor parallelism split this weight. FSDP, which gathers weights before they are used, is not meant."""
    return "tp" in (getattr(getattr(weight, "device_mesh", None), "mesh_dim_names", None) or ())


def local_shard(weight: torch.Tensor) -> torch.Tensor:
    """This process's part of a weight that tensor parallelism split, else the weight."""
    if not is_shard(weight):
        return weight
    if torch.is_grad_enabled() and weight.requires_grad:
        raise RSMoEError(
            "Tensor parallelism is for inference: use `torch.no_grad()`; to train, spread the model by FSDP."
        )
    return cast(Any, weight).to_local()


def is_hooked(module: nn.Module) -> bool:
    """Whether `module`, or what an adapter library wrapped into it, carries one of our hooks."""
    hooks = [hook for child in module.modules() for hook in child._forward_hooks.values()]
    return any(isinstance(hook, (AddLowRank, KeepNormInput, ReplaceOutputs)) for hook in hooks)


def gate_columns(adapters: dict[int, RSMoEExpert]) -> dict[int, range]:
    """Columns of the gate that belong to each adapter with low-rank weights: one for each of its ranks."""
    columns, start = {}, 0
    for adapter_id, adapter in adapters.items():
        if adapter.config.expert_type == "lora":
            columns[adapter_id] = range(start, start + adapter.config.r)
            start += adapter.config.r
    return columns


def attach_adapters(language_model: PreTrainedModel, adapters: dict[int, RSMoEExpert]) -> None:
    """Hook adapters, by id, into the decoder. Safe to call again: what is hooked stays as it is."""
    columns = gate_columns(adapters)
    for index, layer in enumerate(decoder_layers(language_model)):
        pairs: dict[str, dict[int, LowRank]] = {}
        full_layers: dict[str, dict[int, nn.Module]] = {}
        for adapter_id, adapter in adapters.items():
            for path, module in adapter.layers[index].named_modules():
                if isinstance(module, LowRank):
                    pairs.setdefault(path, {})[adapter_id] = module
                elif adapter.config.expert_type == "full" and module._parameters:
                    full_layers.setdefault(path, {})[adapter_id] = module
        first_norms = full_layers.pop(FIRST_NORM, {})
        attention = layer.get_submodule("self_attn")
        if not any(isinstance(hook, SelectAdapters) for hook in attention._forward_pre_hooks.values()):
            attention.register_forward_pre_hook(SelectAdapters(first_norms), with_kwargs=True)
        if first_norms and not is_hooked(layer.get_submodule(FIRST_NORM)):
            layer.get_submodule(FIRST_NORM).register_forward_hook(KeepNormInput())
        for path in dict.fromkeys([*pairs, *full_layers]):
            target = layer.get_submodule(path)
            if is_hooked(target):
                continue
            if path in pairs:
                has_all = list(pairs[path]) == list(columns)
                path_columns = [column for adapter_id in pairs[path] for column in columns[adapter_id]]
                target.register_forward_hook(AddLowRank(list(pairs[path].values()), None if has_all else path_columns))
            if path in full_layers:
                target.register_forward_hook(ReplaceOutputs(full_layers[path]))


def detach_adapters(language_model: PreTrainedModel) -> None:
    """Take every hook of ours off the decoder, so that `attach_adapters` can hook other adapters."""
    for module in language_model.modules():
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            for key, hook in list(hooks.items()):
                if isinstance(hook, (AddLowRank, KeepNormInput, ReplaceOutputs, SelectAdapters)):
                    del hooks[key]


def check_attached(language_model: PreTrainedModel, adapters: dict[int, RSMoEExpert]) -> None:
    """Raise if a layer was swapped for one without our hook: its sequences would silently be the base LM's."""
    for index, layer in enumerate(decoder_layers(language_model)):
        for adapter in adapters.values():
            for path, module in adapter.layers[index].named_modules():
                if module._parameters and not is_hooked(layer.get_submodule(path)):
                    raise RSMoEError(
                        f"language_model.layers.{index}.{path} was replaced after the adapters were attached; call "
                        "`model.attach_adapters()`."
                    )


def selected_adapters() -> bool:
    """Whether the layer that ran last in this thread got adapters."""
    return _STATE.gate is not None


def clear_selection() -> None:
    """Forget them: a layer called by itself is the base LM's."""
    _STATE.gate = _STATE.adapter_ids = _STATE.norm_input = None


__all__ = ["RSMoECache"]
