"""Which weights learn: the modules of the model by name, frozen, with LoRA, or all of their weights."""

import re
from collections.abc import Iterator
from typing import Any, cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from ..errors_rsmoe import RSMoEError
from ..experts_rsmoe import RSMoEExpert
from ..modeling_rsmoe import RSMoEForConditionalGeneration
from .settings import ALL, Recipe


# Layers of the Q-Former that only its text passes through; queries have their own ("..._query"), attention is shared.
TEXT_PATH = re.compile(r"(?!.*(attention|_query))(.*\.)?(embeddings\.|intermediate\.dense|output\.(dense|LayerNorm))")
# Where its LoRA goes [paper: q and v of self-attention, all projections of cross-attention, feed-forward layers].
QFORMER_LORA = (
    r"attention\.attention\.(query|value)",
    r"crossattention\..*(query|key|value|dense)",
    r"(intermediate|output)(_query)?\.dense",
)
RANDOM_STD = 0.02  # of weights with expert_start: random


def trained_experts(model: RSMoEForConditionalGeneration, recipe: Recipe) -> list[str]:
    """Names of the experts that learn, in the model's order.

    Raises:
        RSMoEError: a name that the model does not have.
    """
    known = list(model.model.experts)
    unknown = [name for name in recipe.experts if name not in (*known, ALL)]
    if unknown:
        raise RSMoEError(f"experts: the model has no {', '.join(unknown)}; it has {', '.join(known)}")
    return known if ALL in recipe.experts else [name for name in known if name in recipe.experts]


def initialize_adapters(model: RSMoEForConditionalGeneration, recipe: Recipe) -> None:
    """Put router and experts that learn at their start: the base LM exactly [paper], or random weights."""
    if recipe.expert_start == "checkpoint":
        return
    for adapter in _trained_adapters(model, recipe):
        adapter.reset_to(model.model.language_model)
        if recipe.expert_start == "random":
            for parameter in adapter.parameters():
                if parameter.ndim > 1:
                    nn.init.normal_(parameter, std=RANDOM_STD)


def select_modules(model: RSMoEForConditionalGeneration, recipe: Recipe) -> RSMoEForConditionalGeneration | PeftModel:
    """Freeze everything but what the recipe lets learn, and add LoRA where it says so. Changes the model in place.

    Returns:
        The model, inside a `PeftModel` where there is LoRA.
    """
    model.requires_grad_(False)
    selected: Any = _with_lora(model, recipe)
    encoder = model.model.encoder
    if recipe.vision == "full":
        for name, parameter in encoder.vision_model.named_parameters():
            parameter.requires_grad_(not name.endswith("mask_token"))
    if recipe.qformer in ("full", "queries"):
        for name, parameter in encoder.qformer.named_parameters():
            parameter.requires_grad_(recipe.qformer == "full" or TEXT_PATH.match(name) is None)
    if recipe.projection == "full":
        encoder.projection.requires_grad_(True)
        encoder.query_tokens.requires_grad_(True)
    if recipe.language_model == "full":
        model.model.language_model.requires_grad_(True)
        model.lm_head.requires_grad_(True)
    for adapter in _trained_adapters(model, recipe):
        adapter.requires_grad_(True)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise RSMoEError(
            "no trainable parameters: every module is frozen; set vision, qformer, projection, language_model, router "
            "or experts"
        )
    return selected


def cast_base_lm(model: RSMoEForConditionalGeneration) -> None:
    """Keep the frozen weights of the base LM in bfloat16; what learns stays in float32, or small steps were lost."""
    for module in (model.model.language_model, model.lm_head):
        for parameter in module.parameters():
            if not parameter.requires_grad:
                parameter.data = parameter.data.to(torch.bfloat16)


def learning_rate_groups(
    model: nn.Module, recipe: Recipe, default: float, weight_decay: float
) -> list[dict[str, Any]]:
    """Parameter groups of an optimizer: those that learn, by learning rate, matrices with weight decay.

    Args:
        model: from `select_modules`.
        recipe: has the learning rate of each module that has one of its own.
        default: learning rate of the others.
        weight_decay: of matrices; vectors have none.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in trained_parameters(model).items():
        rate = getattr(recipe, f"{module_of(name)}_learning_rate")
        decay = weight_decay if parameter.ndim > 1 else 0.0
        groups.setdefault((default if rate is None else rate, decay), []).append(parameter)
    return [{"params": group, "lr": rate, "weight_decay": decay} for (rate, decay), group in groups.items()]


def module_of(name: str) -> str:
    """The module that a parameter belongs to, as in the names of the learning rates."""
    if ".router." in name:
        return "router"
    if ".experts." in name:
        return "experts"
    if ".vision_model." in name:
        return "vision"
    if "crossattention" in name or ".projection." in name or ".query_tokens." in name:
        return "projection"
    return "qformer" if ".qformer." in name else "language_model"


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Name -> parameter that learns, in the model's order."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def _trained_adapters(model: RSMoEForConditionalGeneration, recipe: Recipe) -> Iterator[RSMoEExpert]:
    if recipe.router == "train":
        yield model.model.router
    for name in trained_experts(model, recipe):
        yield model.model.expert(name)


def _with_lora(model: RSMoEForConditionalGeneration, recipe: Recipe) -> RSMoEForConditionalGeneration | PeftModel:
    targets = []
    if recipe.language_model == "lora":
        leaves = "|".join(model.config.expert_config.target_modules)
        targets.append(rf"model\.language_model\..*\.({leaves})")
    if recipe.qformer == "lora":
        targets.append(rf"model\.encoder\.qformer\..*({'|'.join(QFORMER_LORA)})")
    if not targets:
        return model

    config = LoraConfig(
        r=recipe.lora_r,
        lora_alpha=recipe.lora_alpha,  # type: ignore[arg-type]
        lora_dropout=recipe.lora_dropout,
        target_modules="|".join(f"({target})" for target in targets),
    )
    wrapped = get_peft_model(model, config)
    for module in wrapped.modules():
        if isinstance(module, BaseTunerLayer):
            cast(Any, module).cast_input_dtype_enabled = False  # autocast does it, once for each weight
    return wrapped
