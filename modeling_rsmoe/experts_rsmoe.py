"""Experts, and the hooks by which the rows of one batch are read by several experts at once.

An LLM call in RS-MoE is one row of a batch, seen by one reader: the base LM itself, the router or an expert. The
decoder's own layers run once over all rows; forward hooks on their linear layers add what each row's reader changes.
Nothing here knows about images, prompts or tokens.
"""

from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import nn
from transformers import AutoModel, PreTrainedModel
from transformers import initialization as init

from .base_rsmoe import RSMoEPart
from .configuration_rsmoe import RSMoEExpertConfig
from .errors_rsmoe import RSMoEError


FIRST_NORM = "input_layernorm"  # the one part of a decoder layer that runs before its self_attn


class LowRank(nn.Module):
    """The pair of low-rank weights of one linear layer: `x -> x @ lora_A.T @ lora_B.T`, zero at the start."""

    def __init__(self, in_features: int, out_features: int, rank: int):
        super().__init__()
        self.lora_A = nn.Parameter(torch.zeros(rank, in_features))
        self.lora_B = nn.Parameter(torch.zeros(out_features, rank))


def decoder_layers(language_model: PreTrainedModel) -> nn.ModuleList:
    """The decoder's layers; an [`RSMoEError`] names a decoder that cannot hold experts."""
    kind = language_model.config.model_type
    layers = getattr(language_model, "layers", None)
    if not isinstance(layers, nn.ModuleList) or not all(hasattr(layer, "self_attn") for layer in layers):
        raise RSMoEError(
            f"text_config.model_type {kind!r} has no `layers` with `self_attn`; choose a decoder such as 'llama', 'qwen2', "
            "'qwen3', 'mistral' or 'smollm3'."
        )
    return layers


def check_float(language_model: PreTrainedModel) -> None:
    """Raise if a decoder's weights are quantised, where they are to be read or written as numbers."""
    if getattr(language_model.config, "_is_quantized", False):
        raise RSMoEError("The base LM is quantised: load a checkpoint of float weights for this.")


def target_linears(layer: nn.Module, target_modules: Sequence[str]) -> dict[str, nn.Linear]:
    """Path inside `layer` -> linear layer, for each leaf name in `target_modules`, in that order (so that the order of
    parameters never depends on how a config was stored)."""
    found: dict[str, nn.Linear] = {}
    for target in target_modules:
        paths = [path for path, module in layer.named_modules() if path.split(".")[-1] == target]
        if not paths:
            known = sorted(
                {path.split(".")[-1] for path, module in layer.named_modules() if isinstance(module, nn.Linear)}
            )
            raise RSMoEError(f"target_modules: the decoder has no layer {target!r}; its linear layers are {known}.")
        found |= {path: cast(nn.Linear, layer.get_submodule(path)) for path in paths}
    return found


def _mirror(paths: Mapping[str, nn.Module]) -> nn.Module:
    """A tree of empty modules with `paths` as its leaves: parameter names then equal the decoder's own."""
    root = nn.Module()
    for path, leaf in paths.items():
        *parents, name = path.split(".")
        node = root
        for parent in parents:
            if not hasattr(node, parent):
                node.add_module(parent, nn.Module())
            node = getattr(node, parent)
        node.add_module(name, leaf)
    return root


class RSMoEExpert(RSMoEPart):
    """One lightweight expert: what it changes in the base LM, layer by layer.

    Kind `lora` holds a [`LowRank`] pair for each target layer; kind `full` holds the decoder's own layers. It is read
    through the hooks of an `RSMoEModel` and has no forward of its own: `merge_into` turns it into a plain decoder.
    """

    config_class = RSMoEExpertConfig
    base_model_prefix = ""
    main_input_name = "input_ids"

    def __init__(self, config: RSMoEExpertConfig, layers: nn.ModuleList | None = None):
        super().__init__(config)
        if layers is None:  # alone: only the decoder's shapes are needed, so its weights take no memory
            if config.text_config is None:
                raise RSMoEError(
                    f"{config.base_config_key}.text_config is missing: an expert alone needs its decoder's configuration."
                )
            with torch.device("meta"):
                layers = decoder_layers(AutoModel.from_config(config.text_config))
        if config.expert_type == "full":
            self.layers = nn.ModuleList(type(layer)(config.text_config, i) for i, layer in enumerate(layers))
        else:
            self.layers = nn.ModuleList(
                _mirror(
                    {
                        path: LowRank(linear.in_features, linear.out_features, config.r)
                        for path, linear in target_linears(layer, config.target_modules).items()
                    }
                )
                for layer in layers
            )
        self.post_init()
        self._tp_plan = self._plan_of_shards()

    def _plan_of_shards(self) -> dict[str, str]:
        """Tensor parallelism: what is split as the decoder's own linear layers are. Of a pair that is the side that meets the
        split width: `lora_B` where the outputs are split, `lora_A` where the inputs are."""
        decoder = getattr(self.config.text_config, "base_model_tp_plan", None) or {}
        plan = {rule: style for rule, style in decoder.items() if rule.startswith("layers.")}
        if self.config.expert_type == "full":
            return plan
        sides = {"colwise": "lora_B", "rowwise": "lora_A"}
        return {
            f"{rule}.{sides[style]}": style
            for rule, style in plan.items()
            if style in sides and rule.split(".")[-1] in self.config.target_modules
        }

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        if isinstance(module, LowRank):
            init.kaiming_uniform_(module.lora_A, a=5**0.5)
            init.zeros_(module.lora_B)  # an expert starts exactly at the base LM
        else:
            super()._init_weights(module)

    def forward(self, *args, **kwargs):
        raise RSMoEError("An expert is read through RSMoEModel, or as a plain decoder after `merge_into(decoder)`.")

    @property
    def scaling(self) -> float:
        """Factor on the low-rank product: lora_alpha / r."""
        return self.config.lora_alpha / self.config.r

    @torch.no_grad()
    def reset_to(self, language_model: PreTrainedModel) -> None:
        """Start at the base LM exactly: B = 0, or copied layers. The beginning of stage 2 [paper]."""
        if self.config.expert_type == "full":
            check_float(language_model)
            self.layers.load_state_dict(decoder_layers(language_model).state_dict())
            return
        for module in self.modules():
            if isinstance(module, LowRank):
                nn.init.kaiming_uniform_(module.lora_A, a=5**0.5)
                nn.init.zeros_(module.lora_B)

    @torch.no_grad()
    def merge_into(self, language_model: PreTrainedModel) -> PreTrainedModel:
        """Write this expert into a decoder's own weights (in place), which makes it a plain LLM. Returns that decoder."""
        check_float(language_model)
        layers = decoder_layers(language_model)
        if self.config.expert_type == "full":
            for layer, own in zip(layers, self.layers):
                for name, parameter in own.named_parameters():
                    layer.get_parameter(name).copy_(parameter)
            return language_model
        for layer, own in zip(layers, self.layers):
            for path, linear in target_linears(layer, self.config.target_modules).items():
                pair = cast(LowRank, own.get_submodule(path))
                delta = self.scaling * (pair.lora_B.float() @ pair.lora_A.float())
                linear.weight.copy_(linear.weight.float() + delta)
        return language_model

    def load_weights(self, folder: str | Path) -> None:
        """Take the weights of an expert's folder; kind, rank and shapes must equal this expert's.

        Raises:
            RSMoEError: names the first weight that is missing, of another shape, or not finite (one infinite weight
                would turn every row of a batch into NaN, because all experts are one masked product).
        """
        other = type(self).from_pretrained(folder)
        theirs, ours = other.state_dict(), self.state_dict()
        if other.config.expert_type != self.config.expert_type or other.scaling != self.scaling:
            raise RSMoEError(
                f"{folder} holds an expert of kind {other.config.expert_type!r} and scaling {other.scaling}; "
                f"this model's are {self.config.expert_type!r} and {self.scaling}."
            )
        for key in sorted(ours.keys() | theirs.keys()):
            shapes = [tuple(state[key].shape) if key in state else None for state in (theirs, ours)]
            if shapes[0] != shapes[1]:
                raise RSMoEError(f"{folder}: {key} has shape {shapes[0]}; this model needs {shapes[1]}.")
            if not torch.isfinite(theirs[key]).all():
                raise RSMoEError(f"{folder}: {key} is not finite; that expert would spoil every row of a batch.")
        self.load_state_dict(theirs)


class RowContext:
    """Who reads each row of the batch in the layer that is running, shared by all hooks of one model."""

    def __init__(self) -> None:
        self.gate: torch.Tensor | None = None  # [rows, 1, sum of ranks]: the reader's scaling, 0 elsewhere
        self.readers: torch.Tensor | None = None  # [rows]: index of the reader, 0 = the base LM
        self.before_norm: torch.Tensor | None = None  # [rows, tokens, hidden_size]: input of the layer's first norm
        self._stacks: dict[int, tuple[torch.Tensor, torch.Tensor]] | None = None

    @contextmanager
    def stacked_once(self):
        """Within: the stacked weights of all experts are made once, not at every step. Only where no weight changes."""
        outer, self._stacks = self._stacks, {} if self._stacks is None else self._stacks
        try:
            yield
        finally:
            self._stacks = outer

    def stack(self, key: int, pairs: list[LowRank], x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """All pairs as one, for an input like `x`: A [in, sum of ranks], B [sum of ranks, out]."""
        kept = None if torch.is_grad_enabled() else self._stacks
        if kept is not None and key in kept:
            return kept[key]
        A = torch.cat([own_shard(pair.lora_A) for pair in pairs]).t().to(x.device, x.dtype)
        B = torch.cat([own_shard(pair.lora_B) for pair in pairs], dim=1).t().to(x.device, x.dtype)
        if kept is None:
            return A, B
        return kept.setdefault(key, (A.contiguous(), B.contiguous()))


class SetRows:
    """Pre-hook of a layer's `self_attn`: takes the readers out of the keyword arguments into the context.

    They travel as keyword arguments, because a checkpointed layer is run again with *its* arguments in the backward
    pass: set once outside, they would be those of another batch by then (wrong gradients without an error).
    """

    def __init__(self, context: RowContext, first_norms: dict[int, nn.Module]):
        self.context, self.first_norms = context, first_norms

    def __call__(self, module, args, kwargs):
        kwargs = dict(kwargs)  # attention backends never see our arguments
        self.context.gate = kwargs.pop("adapter_gate", None)
        self.context.readers = kwargs.pop("expert_rows", None)
        if self.first_norms and self.context.readers is not None:
            # The first norm ran before the readers were known here: rows of `full` experts get their own norm now.
            hidden = kwargs.pop("hidden_states") if "hidden_states" in kwargs else args[0]
            hidden = replace_rows(hidden, self.context.before_norm, self.context.readers, self.first_norms)
            args = (hidden, *args[1:])
        self.context.before_norm = None
        return args, kwargs


class KeepInput:
    """Forward hook of a layer's first norm: keeps its input for `SetRows`."""

    def __init__(self, context: RowContext):
        self.context = context

    def __call__(self, module, args, output):
        self.context.before_norm = args[0]


class AddRows:
    """Forward hook of a linear layer: adds each row's low-rank product, all experts in one masked pair of products."""

    def __init__(self, context: RowContext, pairs: list[LowRank], columns: list[int] | None):
        # `columns` of the gate belong to `pairs`; None where every reader with low-rank weights has this layer.
        self.context, self.pairs, self.columns = context, pairs, columns

    def __call__(self, module, args, output):
        gate = self.context.gate
        if gate is None:
            return output
        if self.columns is not None:
            gate = gate[..., self.columns]
        x = args[0]  # [rows, tokens, in]
        A, B = self.context.stack(id(self), self.pairs, x)
        low = x @ A  # [rows, tokens, sum of ranks]
        if is_shard(self.pairs[0].lora_A):  # of inputs that are split: each process has a part of the sum
            dist.all_reduce(low, group=self.pairs[0].lora_A.device_mesh.get_group())
        gate = gate.to(x.device, x.dtype)
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or output.dtype != x.dtype:
            return output + ((low * gate) @ B).to(output.dtype)
        # In place: a new tensor for each product costs as much as the product itself in a long row.
        output.view(-1, output.shape[-1]).addmm_(low.mul_(gate).view(-1, low.shape[-1]), B)
        return output


class ReplaceRows:
    """Forward hook of any layer with weights: rows of a `full` expert get that expert's own layer's output instead."""

    def __init__(self, context: RowContext, members: dict[int, nn.Module]):
        self.context, self.members = context, members

    def __call__(self, module, args, output):
        if self.context.readers is None:
            return output
        return replace_rows(output, args[0], self.context.readers, self.members)


def replace_rows(
    output: torch.Tensor, x: torch.Tensor, readers: torch.Tensor, members: dict[int, nn.Module]
) -> torch.Tensor:
    """`output` [rows, ...] with `member(x)` in the rows of each member."""
    for reader, member in members.items():
        rows = (readers == reader).nonzero().flatten()
        if rows.numel():
            output = output.index_copy(0, rows, member(x[rows]).to(output.dtype))
    return output


def is_shard(weight: torch.Tensor) -> bool:
    """Whether tensor parallelism split this weight (FSDP, which gathers weights before they are used, is not meant)."""
    return "tp" in (getattr(getattr(weight, "device_mesh", None), "mesh_dim_names", None) or ())


def own_shard(weight: torch.Tensor) -> torch.Tensor:
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
    return any(
        isinstance(h, (AddRows, KeepInput, ReplaceRows)) for m in module.modules() for h in m._forward_hooks.values()
    )


def gate_columns(readers: dict[int, RSMoEExpert]) -> dict[int, range]:
    """Columns of the gate that belong to each reader with low-rank weights: one for each of its ranks."""
    columns, start = {}, 0
    for index, reader in readers.items():
        if reader.config.expert_type == "lora":
            columns[index] = range(start, start + reader.config.r)
            start += reader.config.r
    return columns


def attach(language_model: PreTrainedModel, context: RowContext, readers: dict[int, RSMoEExpert]) -> None:
    """Hook `readers` (index -> router or expert) into the decoder. Safe to call again: what is hooked stays as it is."""
    columns = gate_columns(readers)
    for i, layer in enumerate(decoder_layers(language_model)):
        pairs: dict[str, dict[int, LowRank]] = {}
        members: dict[str, dict[int, nn.Module]] = {}
        for index, reader in readers.items():
            for path, module in reader.layers[i].named_modules():
                if isinstance(module, LowRank):
                    pairs.setdefault(path, {})[index] = module
                elif reader.config.expert_type == "full" and module._parameters:
                    members.setdefault(path, {})[index] = module
        first_norms = members.pop(FIRST_NORM, {})
        attention = layer.get_submodule("self_attn")
        if not any(isinstance(hook, SetRows) for hook in attention._forward_pre_hooks.values()):
            attention.register_forward_pre_hook(SetRows(context, first_norms), with_kwargs=True)
        if first_norms and not is_hooked(layer.get_submodule(FIRST_NORM)):
            layer.get_submodule(FIRST_NORM).register_forward_hook(KeepInput(context))
        for path in [*pairs, *(path for path in members if path not in pairs)]:
            base = layer.get_submodule(path)
            if is_hooked(base):
                continue
            if path in pairs:
                every = list(pairs[path]) == list(columns)
                own = None if every else [column for index in pairs[path] for column in columns[index]]
                base.register_forward_hook(AddRows(context, list(pairs[path].values()), own))
            if path in members:
                base.register_forward_hook(ReplaceRows(context, members[path]))


def detach(language_model: PreTrainedModel) -> None:
    """Take every hook of ours off the decoder, so that `attach` can hook other readers."""
    for module in language_model.modules():
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            for key, hook in list(hooks.items()):
                if isinstance(hook, (AddRows, KeepInput, ReplaceRows, SetRows)):
                    del hooks[key]


def check_attached(language_model: PreTrainedModel, readers: dict[int, RSMoEExpert]) -> None:
    """Raise if a layer was swapped for one without our hook: its rows would silently be the base LM's."""
    for i, layer in enumerate(decoder_layers(language_model)):
        for reader in readers.values():
            for path, module in reader.layers[i].named_modules():
                if module._parameters and not is_hooked(layer.get_submodule(path)):
                    raise RSMoEError(
                        f"language_model.layers.{i}.{path} was replaced after the experts were attached; call `model.attach_experts()`."
                    )


__all__ = ["RSMoEExpert"]
