"""An expert: weights by which the base LM answers one sub-task, kept, merged and exchanged apart from it.

How the sequences of one batch are read by several experts at once stands in `adapters_rsmoe`.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import AutoModel, PreTrainedModel
from transformers import initialization as init

from .base_rsmoe import RSMoEPreTrainedModel
from .configuration_rsmoe import RSMoEExpertConfig
from .errors_rsmoe import RSMoEError


# Ends the names of low-rank pairs: PEFT's `target_modules` go by the ends of names, and mean the decoder's own layers.
PAIR = "_lora"
DECODERS = "choose a decoder such as 'llama', 'qwen2', 'qwen3', 'mistral' or 'smollm3'"


class LowRank(nn.Module):
    """The pair of low-rank weights of one linear layer: `x -> x @ lora_A.T @ lora_B.T`, zero at the start."""

    def __init__(self, in_features: int, out_features: int, rank: int):
        super().__init__()
        self.lora_A = nn.Parameter(torch.zeros(rank, in_features))
        self.lora_B = nn.Parameter(torch.zeros(out_features, rank))


def decoder_layers(language_model: PreTrainedModel) -> nn.ModuleList:
    """The decoder's layers; an error names a decoder that cannot hold experts."""
    layers = getattr(language_model, "layers", None)
    if not isinstance(layers, nn.ModuleList) or not all(hasattr(layer, "self_attn") for layer in layers):
        raise RSMoEError(
            f"text_config.model_type {language_model.config.model_type!r} has no `layers` with `self_attn`; "
            f"{DECODERS}."
        )
    return layers


def check_float(language_model: PreTrainedModel) -> None:
    """Raise if a decoder's weights are quantised, where they are to be read or written as numbers."""
    if getattr(language_model.config, "_is_quantized", False):
        raise RSMoEError("The base LM is quantised: load a checkpoint of float weights for this.")


def target_linears(layer: nn.Module, target_modules: Sequence[str]) -> dict[str, nn.Linear]:
    """The linear layers that get low-rank weights, by their path inside a decoder layer. They are in the order of the
    leaf names `target_modules`, so that the order of parameters never depends on how a config was stored."""
    paths_by_leaf: dict[str, list[str]] = {}
    for path, module in layer.named_modules():
        if isinstance(module, nn.Linear):
            paths_by_leaf.setdefault(path.split(".")[-1], []).append(path)
    linears: dict[str, nn.Linear] = {}
    for target in target_modules:
        if target not in paths_by_leaf:
            raise RSMoEError(
                f"target_modules: the decoder has no layer {target!r}; its linear layers are {sorted(paths_by_leaf)}."
            )
        for path in paths_by_leaf[target]:
            linears[path] = cast(nn.Linear, layer.get_submodule(path))
    return linears


class RSMoEExpert(RSMoEPreTrainedModel):
    """One lightweight expert: what it changes in the base LM, layer by layer.

    With `expert_type="lora"` it holds a [`LowRank`] pair for each target layer, with `"full"` its own decoder layers.
    It acts through the hooks of an [`RSMoEModel`] and has no forward: `merge_into` turns it into a plain decoder.

    Args:
        config (`RSMoEExpertConfig`): Its type, rank and places.
        layers (`nn.ModuleList`, *optional*):
            The decoder layers that it belongs to; by default those of `config.text_config`, without weights.
    """

    config_class = RSMoEExpertConfig
    base_model_prefix = ""
    main_input_name = "input_ids"

    def __init__(self, config: RSMoEExpertConfig, layers: nn.ModuleList | None = None):
        super().__init__(config)
        if layers is None:  # alone: only the decoder's shapes are needed, so its weights take no memory
            if config.text_config is None:
                raise RSMoEError(
                    f"{config.base_config_key}.text_config is missing: an expert alone needs its decoder's "
                    "configuration."
                )
            with torch.device("meta"):
                layers = decoder_layers(AutoModel.from_config(config.text_config))
        if config.expert_type == "full":
            self.layers = nn.ModuleList(type(layer)(config.text_config, index) for index, layer in enumerate(layers))
            self.paths = [[path for path, module in layer.named_modules() if module._parameters] for layer in layers]
        else:
            self.layers = nn.ModuleList(self._low_rank_tree(layer) for layer in layers)
            self.paths = [list(target_linears(layer, config.target_modules)) for layer in layers]
        self.post_init()
        self._tp_plan = self._tensor_parallel_plan()

    def _low_rank_tree(self, layer: nn.Module) -> nn.Module:
        """Pairs in empty modules, so that they stand where the decoder's own layers do."""
        root = nn.Module()
        for path, linear in target_linears(layer, self.config.target_modules).items():
            *parents, name = path.split(".")
            node = root
            for parent in parents:
                if not hasattr(node, parent):
                    node.add_module(parent, nn.Module())
                node = getattr(node, parent)
            node.add_module(name + PAIR, LowRank(linear.in_features, linear.out_features, self.config.r))
        return root

    def _tensor_parallel_plan(self) -> dict[str, str]:
        """What is split as the decoder's own linear layers are. Of a pair that is the side that meets the split width:
        `lora_B` where the outputs are split, `lora_A` where the inputs are."""
        decoder_plan = getattr(self.config.text_config, "base_model_tp_plan", None) or {}
        plan = {rule: style for rule, style in decoder_plan.items() if rule.startswith("layers.")}
        if self.config.expert_type == "full":
            return plan
        sides = {"colwise": "lora_B", "rowwise": "lora_A"}
        return {
            f"{rule}{PAIR}.{sides[style]}": style
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

    def module_at(self, index: int, path: str) -> nn.Module:
        """What it has for the decoder's module at `path` (one of `paths[index]`) of layer `index`."""
        return self.layers[index].get_submodule(path if self.config.expert_type == "full" else path + PAIR)

    def named_pairs(self) -> Iterator[tuple[str, LowRank]]:
        """Its low-rank pairs, by the names of the decoder's own layers (`layers.0.self_attn.q_proj`)."""
        for index, paths in enumerate(self.paths):
            for path in paths:
                yield f"layers.{index}.{path}", cast(LowRank, self.module_at(index, path))

    @property
    def scaling(self) -> float:
        """Factor on the low-rank product: lora_alpha / r."""
        return self.config.lora_alpha / self.config.r

    @torch.no_grad()
    def reset_to(self, language_model: PreTrainedModel) -> None:
        """Start at the base LM exactly: B = 0, or copied layers. The beginning of stage 2 [paper].

        Args:
            language_model (`PreTrainedModel`): The base LM.
        """
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
        """Write this expert into a decoder's weights, in place, which makes it a plain LLM.

        Args:
            language_model (`PreTrainedModel`): The base LM, or a copy of it.

        Returns:
            `PreTrainedModel`: that decoder.

        Raises:
            RSMoEError: its weights are quantised.
        """
        check_float(language_model)
        if self.config.expert_type == "full":
            decoder_layers(language_model).load_state_dict(self.layers.state_dict())
            return language_model
        for name, pair in self.named_pairs():
            weight = cast(nn.Linear, language_model.get_submodule(name)).weight
            weight.copy_(weight.float() + self.scaling * (pair.lora_B.float() @ pair.lora_A.float()))
        return language_model

    def load_weights(self, folder: str | Path) -> None:
        """Take the weights of an expert's folder; type, scaling and shapes must equal this expert's.

        Args:
            folder (`str` or `Path`): Of an expert that was saved alone.

        Raises:
            RSMoEError: names the first weight that is missing, of another shape, or not finite (one infinite weight
                would turn every sequence of its batches into NaN, because all experts of one are a masked product).
        """
        source, info = cast(Any, type(self)).from_pretrained(folder, output_loading_info=True)
        if info["missing_keys"]:  # else they would be new ones
            raise RSMoEError(f"{folder} lacks weights, such as {min(info['missing_keys'])}.")
        if source.config.expert_type != self.config.expert_type or source.scaling != self.scaling:
            raise RSMoEError(
                f"{folder} holds an expert of type {source.config.expert_type!r} and scaling {source.scaling}; "
                f"this model's are {self.config.expert_type!r} and {self.scaling}."
            )
        loaded, current = source.state_dict(), self.state_dict()
        for key in sorted(current.keys() | loaded.keys()):
            shape, needed = (tuple(state[key].shape) if key in state else None for state in (loaded, current))
            if shape != needed:
                raise RSMoEError(f"{folder}: {key} has shape {shape}; this model needs {needed}.")
            if not torch.isfinite(loaded[key]).all():
                raise RSMoEError(f"{folder}: {key} is not finite; that expert would spoil every sequence of a batch.")
        self.load_state_dict(loaded)


__all__ = ["RSMoEExpert"]
