"""How the sequences of one batch are read by several adapters at once, on any Llama-style decoder of transformers.

Each sequence is read by one adapter (the router or an expert), or by the base LM alone. The decoder's layers run once
over all sequences; forward hooks on their linear layers add what each sequence's adapter changes. Nothing here knows
about images or prompts.
"""

import inspect
import threading
from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import nn
from transformers import DynamicCache, PreTrainedModel

from .errors_rsmoe import RSMoEError
from .experts_rsmoe import DECODERS, LowRank, RSMoEExpert, decoder_layers
from .low_rank_rsmoe import CALL, AddLowRank, column_owners, low_rank_ranks


FIRST_NORM = "input_layernorm"  # the one module of a decoder layer that runs before its self_attn
_ATTACHING = threading.Lock()


class SelectAdapters:
    """Pre-hook of a layer's `self_attn`: takes the adapters of its sequences out of the keyword arguments.

    They travel as keyword arguments, because a checkpointed layer is run again with *its* arguments in the backward
    pass, in another thread at times: set once outside, they would be those of another batch by then (wrong gradients
    without an error).
    """

    def __init__(self, first_norms: "ReplaceOutputs | None"):
        self.first_norms = first_norms

    def __call__(self, module, args, kwargs):
        kwargs = dict(kwargs)  # attention backends never see our arguments
        CALL.select(kwargs.pop("adapter_gate", None), kwargs.pop("gated_adapters", None))
        CALL.adapter_ids = kwargs.pop("adapter_ids", None)
        if self.first_norms is not None and CALL.adapter_ids is not None:
            # The first norm ran before the adapters were known here: sequences of `full` experts get their norm now.
            hidden = kwargs.pop("hidden_states") if "hidden_states" in kwargs else args[0]
            norm_input = cast(torch.Tensor, CALL.norm_input)
            hidden = self.first_norms.replace(hidden, norm_input, CALL.adapter_ids)
            args = (hidden, *args[1:])
        CALL.norm_input = None
        return args, kwargs


class KeepNormInput:
    """Forward hook of a layer's first norm: keeps its input for `SelectAdapters`."""

    def __call__(self, module, args, output):
        CALL.norm_input = args[0]


class ReplaceOutputs:
    """Forward hook of any module with weights: what a `full` expert reads gets the output of that expert's own. It is
    looked up at each call, because an adapter library may have wrapped it."""

    def __init__(self, experts: dict[int, RSMoEExpert], index: int, path: str):
        self.experts, self.index, self.path = experts, index, path

    def __call__(self, module, args, output):
        return output if CALL.adapter_ids is None else self.replace(output, args[0], CALL.adapter_ids)

    def replace(self, output: torch.Tensor, x: torch.Tensor, adapter_ids: torch.Tensor) -> torch.Tensor:
        """`output` [batch_size, sequence_length, ...], with each expert's own at the sequences or tokens it reads."""
        for adapter_id, expert in self.experts.items():
            places = (adapter_ids == adapter_id).nonzero(as_tuple=True)
            if places[0].numel():
                own = expert.module_at(self.index, self.path)(x[places])
                output = output.index_put(places, own.to(output.dtype))
        return output


HOOKS = (SelectAdapters, KeepNormInput, AddLowRank, ReplaceOutputs)


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


def check_decoder(language_model: PreTrainedModel) -> None:
    """Refuse a decoder whose layers pass no keyword arguments on to their attention: experts could not be selected."""
    layer = decoder_layers(language_model)[0]
    modules = {"model": language_model, "layer": layer, "attention": layer.get_submodule("self_attn")}
    for place, module in modules.items():
        parameters = inspect.signature(module.forward).parameters.values()
        if not any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters):
            raise RSMoEError(
                f"text_config.model_type {language_model.config.model_type!r} does not pass keyword arguments on to "
                f"its attention ({place} {type(module).__name__} takes none); {DECODERS}."
            )


def attach_adapters(language_model: PreTrainedModel, adapters: dict[int, RSMoEExpert]) -> None:
    """Hook adapters, by id, into the decoder. What is hooked stays as it is; what was replaced is hooked anew; what an
    adapter library wrapped is hooked as a whole, because it may scale what it wraps (DoRA)."""
    ranks = low_rank_ranks(adapters)
    with _ATTACHING:
        for index, layer in enumerate(decoder_layers(language_model)):
            by_place: dict[tuple[str, str], dict[int, RSMoEExpert]] = {}
            for adapter_id, adapter in adapters.items():
                for path in adapter.paths[index]:
                    by_place.setdefault((adapter.config.expert_type, path), {})[adapter_id] = adapter
            first_norms = None
            for (expert_type, path), experts in by_place.items():
                module = layer.get_submodule(path)
                if expert_type == "full" and path == FIRST_NORM:
                    first_norms = ReplaceOutputs(experts, index, path)
                    _hook(module, KeepNormInput())
                elif expert_type == "full":
                    _hook(module, ReplaceOutputs(experts, index, path))
                elif not is_hooked(module, AddLowRank):
                    pairs = {key: cast(LowRank, expert.module_at(index, path)) for key, expert in experts.items()}
                    _hook(module, AddLowRank(pairs, ranks))
            attention = layer.get_submodule("self_attn")
            if not is_hooked(attention, SelectAdapters):
                attention.register_forward_pre_hook(SelectAdapters(first_norms), with_kwargs=True)


def is_hooked(module: nn.Module, *kinds: type) -> bool:
    """Whether `module` itself carries a hook of ours, or of these kinds of them."""
    hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
    return any(isinstance(hook, kinds or HOOKS) for hook in hooks)


def _hook(module: nn.Module, hook: Any) -> None:
    if not is_hooked(module, type(hook)):
        detach_adapters(module, type(hook))  # from what it wraps
        module.register_forward_hook(hook)


def detach_adapters(module: nn.Module, *kinds: type) -> None:
    """Take our hooks, all or of these kinds, off `module` and what is within it."""
    for child in module.modules():
        for hooks in (child._forward_hooks, child._forward_pre_hooks):
            for key, hook in list(hooks.items()):
                if isinstance(hook, kinds or HOOKS):
                    del hooks[key]


class RSMoEAdapterMixin:
    """What [`RSMoEModel`] knows of router and experts: who they are, and who reads each sequence or token."""

    # Of the model that this is mixed into.
    config: Any
    training: bool
    language_model: Any
    router: Any
    experts: Any
    get_input_embeddings: Any

    @property
    def adapters(self) -> dict[int, RSMoEExpert]:
        """Who can read a sequence besides the base LM (id 0): 1 the router, from 2 on the experts in order."""
        return dict(enumerate([self.router, *self.experts.values()], start=1))

    def attach_adapters(self) -> None:
        """Hook router and experts into the base LM. `forward` does so itself; only compiled code has to be told that
        layers of the language model were replaced."""
        for adapter in self.adapters.values():
            if not isinstance(adapter, RSMoEExpert):  # hooks hold the weights of what it wraps
                raise RSMoEError(
                    f"Router and experts cannot be wrapped ({type(adapter).__name__}): leave them out of PEFT's "
                    "modules_to_save; to train one, give it requires_grad_(True) and save the whole model."
                )
        attach_adapters(self.language_model, self.adapters)

    def reset_adapters(self) -> None:
        """Start router and experts at the base LM exactly: the beginning of stage 2 [paper]."""
        for adapter in self.adapters.values():
            adapter.reset_to(self.language_model)

    def expert(self, name: str) -> RSMoEExpert:
        """The expert of a name.

        Args:
            name (`str`): One of `config.expert_names`.

        Raises:
            RSMoEError: an unknown name; the known ones are listed.
        """
        if name not in self.experts:
            raise RSMoEError(f"Unknown expert {name!r}; this model has {', '.join(self.experts)}.")
        return cast(RSMoEExpert, self.experts[name])

    def get_adapter_ids(
        self,
        input_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        sequence_indices: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Who reads each sequence, from its first adapter token: 0 the base LM, 1 the router, 2... the experts.

        Args:
            input_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
                From the start of the sequences.
            inputs_embeds (`torch.FloatTensor` of shape `(batch_size, sequence_length, hidden_size)`, *optional*):
                In place of `input_ids`: adapter tokens are known by their embeddings.
            sequence_indices (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
                Which sequence of its row each token is of, where several are packed into one, counted from 0.

        Returns:
            `torch.LongTensor` of shape `(batch_size,)`, or of packed rows `(batch_size, sequence_length)`.

        Raises:
            RSMoEError: adapter tokens that have the same embedding stand in `inputs_embeds`.
        """
        device = cast(torch.Tensor, inputs_embeds if input_ids is None else input_ids).device
        tokens = torch.tensor(self.config.adapter_token_ids, device=device)
        if input_ids is not None:
            is_token = input_ids.unsqueeze(-1) == tokens  # [batch_size, sequence_length, adapters]
        else:
            embeddings = self.get_input_embeddings()(tokens)
            is_token = torch.stack([(inputs_embeds == embedding).all(-1) for embedding in embeddings], dim=-1)
            if not torch.compiler.is_compiling() and bool((is_token.sum(-1) > 1).any()):
                raise RSMoEError("Adapter tokens with equal embeddings stand in inputs_embeds: pass adapter_ids.")
        # [batch_size, sequence_length]: the adapter of an adapter token, else 0
        marks = torch.where(is_token.any(-1), is_token.int().argmax(-1) + 1, 0)
        places = torch.arange(marks.shape[1], device=marks.device).expand_as(marks)
        indices = torch.zeros_like(marks) if sequence_indices is None else sequence_indices
        beyond = torch.full_like(marks, marks.shape[1])
        first = beyond.scatter_reduce(-1, indices, torch.where(marks > 0, places, beyond), "amin")  # of each sequence
        adapter_ids = nn.functional.pad(marks, (0, 1)).gather(-1, first)
        return adapter_ids[:, 0] if sequence_indices is None else adapter_ids.gather(-1, indices)

    def get_adapter_gate(self, adapter_ids: torch.Tensor, gated: Iterable[int] | None = None) -> torch.Tensor:
        """The scaling of each sequence's (or token's) adapter in that adapter's columns, 0 elsewhere.

        Args:
            adapter_ids (`torch.LongTensor` of shape `(batch_size,)` or `(batch_size, sequence_length)`):
                Of `get_adapter_ids`.
            gated (`Iterable[int]`, *optional*):
                The adapters with low-rank weights that have columns; by default all.

        Returns:
            `torch.FloatTensor` of shape `(batch_size, 1 or sequence_length, sum of ranks)`.
        """
        adapters = self.adapters
        ranks = low_rank_ranks(adapters)
        owners = column_owners(ranks, ranks if gated is None else gated)
        scales = [adapters[owner].scaling for owner in owners]
        device = adapter_ids.device
        adapter_ids = adapter_ids.view(len(adapter_ids), -1, 1)  # [batch_size, 1 or sequence_length, 1]
        return (adapter_ids == torch.tensor(owners, device=device)) * torch.tensor(scales, device=device)

    def _select_adapters(
        self, input_ids, adapter_ids, past_key_values, inputs_embeds, sequence_indices
    ) -> torch.Tensor:
        """Given ids win; then what the cache remembers of its sequences; then the tokens of sequences read from their
        start."""
        batch_size, sequence_length = inputs_embeds.shape[:2]
        if adapter_ids is None and past_key_values is not None and past_key_values.get_seq_length() > 0:
            adapter_ids = getattr(past_key_values, "adapter_ids", None)
            if adapter_ids is None or len(adapter_ids) != batch_size:
                raise ValueError(
                    "past_key_values was not filled by this model for these sequences: pass `adapter_ids` as well."
                )
        if adapter_ids is None:
            return self.get_adapter_ids(input_ids, inputs_embeds, sequence_indices)
        if adapter_ids.shape not in ((batch_size,), (batch_size, sequence_length)):
            raise ValueError(
                f"adapter_ids has shape {tuple(adapter_ids.shape)}; expected ({batch_size},), one for each sequence, "
                f"or ({batch_size}, {sequence_length}), one for each token."
            )
        return adapter_ids.to(inputs_embeds.device)

    def adapter_kwargs(self, adapter_ids: torch.Tensor, dtype: torch.dtype) -> dict[str, Any]:
        """Keyword arguments by which each decoder layer knows the adapters of its sequences.

        Args:
            adapter_ids (`torch.LongTensor` of shape `(batch_size,)` or `(batch_size, sequence_length)`):
                Of `get_adapter_ids`.
            dtype (`torch.dtype`): Of the gate.

        Returns:
            `dict[str, Any]`: `adapter_gate`, over the adapters that read a sequence (all while one trains or is
            compiled; others too whose weights are stacked with theirs); `gated_adapters`, the ids of its columns; and
            `adapter_ids`, where there are `full` experts. Empty where the base LM reads all sequences.
        """
        adapters = self.adapters
        ranks = low_rank_ranks(adapters)
        # Where adapters train, all have their columns: every one stays in the graph (DDP needs no search for absent
        # ones).
        trains = self.training and any(p.requires_grad for adapter in adapters.values() for p in adapter.parameters())
        gated = tuple(ranks)
        if not (trains or torch.compiler.is_compiling()):
            readers = set(adapter_ids.flatten().tolist())
            if readers == {0}:
                return {}
            gated = tuple(adapter_id for adapter_id in ranks if adapter_id in readers)
            # What is stacked already serves the sequences that are left when others have ended.
            gated = next((known for known in CALL.stacks or () if known and readers <= {0, *known}), gated)
        gate = self.get_adapter_gate(adapter_ids, gated).to(dtype)
        arguments: dict[str, Any] = {"adapter_gate": gate, "gated_adapters": gated}
        if len(ranks) < len(adapters):
            arguments["adapter_ids"] = adapter_ids
        return arguments


__all__ = ["RSMoECache"]
