"""The low-rank products of several adapters in one batch, and what the hooks of a decoder layer know of the call."""

import threading
from collections.abc import Iterable, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol, cast

import torch
import torch.distributed as dist

from .errors_rsmoe import RSMoEError
from .experts_rsmoe import LowRank, RSMoEExpert


Columns = int | tuple[int, ...]  # all columns of a gate so many times, or some of them


class CallState(threading.local):
    """What the hooks of a decoder layer know of the call that runs it. Each thread has its own, so that several may
    use one model; a layer's hooks set it anew before they read it."""

    # [batch_size, 1 or sequence_length, sum of ranks]: the adapter's scaling, 0 in others' columns
    gate: torch.Tensor | None = None
    gated: tuple[int, ...] | None = None  # the adapters that the gate has columns of; None: all
    # [batch_size] or [batch_size, sequence_length]; only where there are `full` experts
    adapter_ids: torch.Tensor | None = None
    norm_input: torch.Tensor | None = None  # [batch_size, sequence_length, hidden_size]: input of the first norm
    columns: "dict[Columns, torch.Tensor]"  # of the gate [vectors, columns], once they are asked for
    stacked: "Stacks | None" = None  # of the gate's adapters; None: stacked anew by each layer
    stacks: "dict[tuple[int, ...] | None, Stacks] | None" = None  # by `gated`, for as long as `stacked_adapters`

    def select(self, gate: torch.Tensor | None, gated: tuple[int, ...] | None) -> None:
        """What the layer that runs now was given; all layers of a call are given the same."""
        if gate is not self.gate:
            self.gate, self.gated, self.columns = gate, gated, {}
            stacks = None if torch.is_grad_enabled() else self.stacks
            self.stacked = None if stacks is None else stacks.setdefault(gated, {})


class LowRankOwner(Protocol):
    """Linear layers that read the same vectors: the hook of one, or whoever computes several as one."""

    widths: Sequence[int]  # of each layer's output; not asked for of one layer

    @property
    def hooks(self) -> "Sequence[AddLowRank | None]":
        """Of each layer; None where it has none."""


class Stack(NamedTuple):
    """The low-rank pairs of linear layers that read the same vectors."""

    A: torch.Tensor  # [in, sum of ranks of all layers]
    B: list[torch.Tensor | None]  # of each layer [sum of ranks, out]
    ranks: list[int]  # of each layer the sum of its ranks
    columns: Columns  # of the gate, for the columns of A
    group: Any  # of the processes that the layers' inputs are split over


Stacks = dict[LowRankOwner, Stack | None]
CALL = CallState()


@contextmanager
def stacked_adapters():
    """Within, in this thread: the stacked weights of all adapters are made once, not at every step. Only where no
    weight changes."""
    outer, CALL.stacks = CALL.stacks, {} if CALL.stacks is None else CALL.stacks
    try:
        yield
    finally:
        CALL.stacks = outer


def selected_adapters() -> bool:
    """Whether the layer that ran last in this thread got adapters."""
    return CALL.gate is not None


def clear_selection() -> None:
    """Forget them: a layer called by itself is the base LM's."""
    CALL.gate = CALL.gated = CALL.stacked = CALL.adapter_ids = CALL.norm_input = None


class AddLowRank:
    """Forward hook of a linear layer: adds each sequence's low-rank product, those of all adapters of the gate in
    one masked pair of products. `pairs` by adapter id; an adapter may lack this layer. `ranks` of all adapters."""

    widths: Sequence[int] = ()

    def __init__(self, pairs: dict[int, LowRank], ranks: dict[int, int]):
        self.pairs, self.ranks = pairs, ranks

    @property
    def hooks(self) -> "Sequence[AddLowRank | None]":
        return (self,)

    def __call__(self, module, args, output):
        x = args[0]  # [batch_size, sequence_length, in]
        if not (torch.is_grad_enabled() or torch.compiler.is_compiling()) and output.dtype == x.dtype:
            add_low_rank(self, x.reshape(-1, x.shape[-1]), output.view(-1, output.shape[-1]))
            return output
        stack = None if CALL.gate is None else _stack(self, x)
        if stack is None:
            return output
        low = _reduced(stack, x.reshape(-1, x.shape[-1])).view(*x.shape[:-1], -1) * _gate(stack, x)
        return output + (low @ cast(torch.Tensor, stack.B[0])).to(output.dtype)


def add_low_rank(owner: LowRankOwner, x: torch.Tensor, output: torch.Tensor) -> None:
    """Add the low-rank products of linear layers that read the same vectors, without gradients: one product with A for
    all of them, and the products with B into the output. New tensors would cost as much as the products.

    Args:
        owner: of the layers.
        x (`torch.FloatTensor` of shape `(batch_size * sequence_length, in)`): What the layers read.
        output (`torch.FloatTensor` of shape `(batch_size * sequence_length, sum of widths)`): Of all layers, side by
            side; changed.
    """
    if CALL.gate is None:
        return
    stack = _stack(owner, x)
    if stack is None:
        return
    gate = CALL.columns.get(stack.columns)  # all layers of a model ask for the same few
    if gate is None or gate.device != x.device:
        gate = _gate(stack, x)
        gate = gate.expand(-1, len(x) // len(gate), -1).flatten(0, 1)
        CALL.columns[stack.columns] = gate
    low = _reduced(stack, x).mul_(gate)
    if len(stack.B) == 1:
        output.addmm_(low, cast(torch.Tensor, stack.B[0]))
        return
    for B, part, low_part in zip(stack.B, output.split(owner.widths, -1), low.split(stack.ranks, -1)):
        if B is not None:
            part.addmm_(low_part, B)


def _reduced(stack: Stack, x: torch.Tensor) -> torch.Tensor:
    """[batch_size * sequence_length, sum of ranks]"""
    low = torch.mm(x, stack.A)
    if stack.group is not None:  # each process has a part of the sum
        dist.all_reduce(low, group=stack.group)
    return low


def _gate(stack: Stack, x: torch.Tensor) -> torch.Tensor:
    """The gate's columns for those of the stack's A, [batch_size, 1 or sequence_length, columns]."""
    gate, columns = cast(torch.Tensor, CALL.gate), stack.columns
    gate = gate.repeat(1, 1, columns) if isinstance(columns, int) else gate[..., list(columns)]
    return gate.to(x.device, x.dtype)


def _stack(owner: LowRankOwner, x: torch.Tensor) -> Stack | None:
    """What is stacked already, else `_made`."""
    stacked = CALL.stacked
    if stacked is None:
        return _made(owner, x)
    if owner not in stacked:
        stack = _made(owner, x)
        stacked[owner] = stack and stack._replace(
            A=stack.A.contiguous(), B=[None if B is None else B.contiguous() for B in stack.B]
        )
    return stacked[owner]


def _made(owner: LowRankOwner, x: torch.Tensor) -> Stack | None:
    """The pairs of the gate's adapters, for an input like `x`; None where none of them has one of these layers."""
    As: list[torch.Tensor] = []
    Bs: list[torch.Tensor | None] = []
    columns: list[int] = []
    group, width = None, 0  # of the gate
    for hook in owner.hooks:
        Bs.append(None)
        if hook is None:
            continue
        gated = tuple(hook.ranks) if CALL.gated is None else CALL.gated
        owners = column_owners(hook.ranks, gated)
        width = len(owners)
        pairs = [hook.pairs[adapter_id] for adapter_id in gated if adapter_id in hook.pairs]
        if pairs:
            As += [local_shard(pair.lora_A) for pair in pairs]
            Bs[-1] = torch.cat([local_shard(pair.lora_B) for pair in pairs], dim=1).t().to(x.device, x.dtype)
            columns += [column for column, adapter_id in enumerate(owners) if adapter_id in hook.pairs]
            weight: Any = pairs[0].lora_A
            group = weight.device_mesh.get_group() if is_shard(weight) else None
    if not As:
        return None
    A = torch.cat(As).t().to(x.device, x.dtype)
    ranks = [0 if B is None else len(B) for B in Bs]
    repeats = len(columns) // width
    has_all = columns == [*range(width)] * repeats
    return Stack(A, Bs, ranks, repeats if has_all else tuple(columns), group)


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


def low_rank_ranks(adapters: dict[int, RSMoEExpert]) -> dict[int, int]:
    """The rank of each adapter that has low-rank weights, by id: so many columns of the gate are its own."""
    return {
        adapter_id: adapter.config.r
        for adapter_id, adapter in adapters.items()
        if adapter.config.expert_type == "lora"
    }


def column_owners(ranks: dict[int, int], gated: Iterable[int]) -> list[int]:
    """The adapter of each column of a gate over the adapters `gated`."""
    return [adapter_id for adapter_id in gated for _ in range(ranks[adapter_id])]
