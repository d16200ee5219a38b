"""What a training needs, without a weight being allocated: parameters by module, which learn, bytes on each device,
and how much there is to compute.

Weights, gradients and the optimizer's state are counted from the model on the meta device. Activations are the peak of
one step over fake tensors (torch's FakeTensorMode), which have shapes and types but no values; its operations are
counted in the same run. Not counted: what the driver, the communication library and the allocator's fragments take.
"""

import weakref
from dataclasses import dataclass
from math import ceil
from typing import Any, Literal, cast, get_args

import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import flop_registry

from ..configuration_rsmoe import RSMoEConfig
from ..errors_rsmoe import RSMoEError
from ..experts_rsmoe import decoder_layers
from ..modeling_rsmoe import RSMoEForConditionalGeneration
from .modules import cast_base_lm, select_modules, trained_parameters
from .settings import Recipe


Strategy = Literal["DDP", "FSDP", "ZeRO-2", "ZeRO-3"]
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)

FLOAT32 = 4  # bytes of what learns, of its gradients, and of each of AdamW's two moments
# DeepSpeed's defaults, in elements: the buffer that gradients are sent from, and the most that ZeRO-3 keeps gathered.
REDUCE_BUCKET, MAX_LIVE = 500_000_000, 1_000_000_000
GATHERED_LAYERS = 2  # that FSDP holds at once: the one that runs and the next
PEAK_TFLOPS = 312.0  # of an NVIDIA A100 in bfloat16, by its data sheet
USED_SHARE = 0.3  # of a device's peak that a training reaches [our decision: assumed, not measured]


@dataclass(frozen=True)
class Batch:
    """The examples of one step on one device; by default a little wider than the widest of nano's trainings."""

    examples: int
    tokens: int = 192  # of a sequence: image, prompt and all its completions
    labels: int = 96  # of them, those that are learned
    qformer_tokens: int = 32
    image_size: int | None = None  # pixels of a side; by default the vision encoder's


@dataclass(frozen=True)
class Memory:
    """Bytes on each device."""

    weights: int
    gradients: int
    optimizer: int
    buffers: int  # gathered weights, and copies of gradients on their way
    activations: int  # at their peak, with what computing needs
    step: int  # what AdamW computes with, after the activations are gone

    @property
    def total(self) -> int:
        """At the peak of a step."""
        return self.weights + self.gradients + self.optimizer + self.buffers + max(self.activations, self.step)


@dataclass(frozen=True)
class StepCost:
    """What one step on one device computes."""

    activations: int  # bytes at their peak, beside weights and gradients
    flops: int  # of products of matrices; an addition and a multiplication are two


def reckoned_seconds(flops: int, peak_tflops: float = PEAK_TFLOPS) -> float:
    """Reckoned, not measured: operations at `USED_SHARE` of what a device computes in a second at its peak."""
    return flops / (peak_tflops * 1e12 * USED_SHARE)


def without_weights(
    config: RSMoEConfig, recipe: Recipe | None = None, bf16: bool = False
) -> RSMoEForConditionalGeneration:
    """The model on the meta device; with a recipe, as its stage trains it.

    Raises:
        RSMoEError: as of `select_modules`.
    """
    with torch.device("meta"):
        model = RSMoEForConditionalGeneration(config)
        if recipe is not None:
            if recipe.attn_implementation is not None:
                cast(Any, model).set_attn_implementation({"text_config": recipe.attn_implementation})
            select_modules(model, recipe)
        if bf16:
            cast_base_lm(model)
    return model


def count_parameters(model: RSMoEForConditionalGeneration, learned: bool = False) -> dict[str, int]:
    """Module -> its parameters, each counted once; with `learned`, only those that learn (LoRA among them)."""
    encoder = model.model.encoder
    modules: dict[str, list[nn.Module]] = {
        "vision": [encoder.vision_model],
        "qformer": [encoder.qformer, encoder.query_tokens],
        "projection": [encoder.projection],
        "language_model": [model.model.language_model, model.lm_head],
        "router": [model.model.router],
        "experts": [model.model.experts],
    }
    if model.model.reranker is not None:
        modules["reranker"] = [model.model.reranker]
    return {
        name: sum(p.numel() for p in nn.ModuleList(several).parameters() if p.requires_grad or not learned)
        for name, several in modules.items()
    }


def sharded_layers(model: RSMoEForConditionalGeneration) -> list[nn.Module]:
    """Layers of base LM, ViT and Q-Former: FSDP's units, as in `hub_configs/accelerate/fsdp.yaml`."""
    encoder = model.model.encoder
    layers = list(decoder_layers(model.model.language_model))
    for transformer in (encoder.vision_model, encoder.qformer):
        layers += next((module for module in transformer.modules() if isinstance(module, nn.ModuleList)), [])
    return layers


def step_memory(
    model: RSMoEForConditionalGeneration, strategy: Strategy, processes: int, bf16: bool, activations: int = 0
) -> Memory:
    """Bytes on each of `processes` devices.

    DDP keeps everything on every device, FSDP is FSDP2 as in `hub_configs/accelerate`. For ZeRO, weights, gradients
    and optimizer are those of DeepSpeed's own estimators without what is frozen: in half precision 2 bytes a parameter
    and 18 / processes for each that learns (ZeRO-2), or 2 / processes and 16 / processes (ZeRO-3).

    Args:
        model: from `without_weights` with a recipe.
        strategy: how the training is spread.
        processes: number of devices.
        bf16: whether it trains in half precision.
        activations: from `activation_bytes`.

    Raises:
        RSMoEError: experts of type `full` cannot be trained with FSDP, since the layers of one never run together.
    """
    parameters, learned = list(model.parameters()), list(trained_parameters(model).values())
    total = sum(parameter.numel() for parameter in parameters)
    count = sum(parameter.numel() for parameter in learned)  # updated on each device
    weights = sum(parameter.numel() * parameter.element_size() for parameter in parameters)
    if strategy in ("ZeRO-2", "ZeRO-3"):  # all weights in the computing precision, and float32 copies of what learns
        width, count = 2 if bf16 else FLOAT32, ceil(count / processes)
        is_spread = strategy == "ZeRO-3"
        weights = width * (ceil(total / processes) if is_spread else total)
        buffers = width * (REDUCE_BUCKET + (min(total, MAX_LIVE) if is_spread else 0))
        gradients = (FLOAT32 if is_spread else FLOAT32 + width) * count
        # Gradients in float32 are only there in the step, which needs no more then.
        return Memory(weights, gradients, 3 * FLOAT32 * count, buffers, activations, step=0)
    buffers = FLOAT32 * count if processes > 1 else 0  # gradients are copied into what is sent
    if strategy == "FSDP":
        if any(adapter.config.expert_type == "full" for adapter in model.model.adapters.values()):
            raise RSMoEError(
                "expert_config.expert_type is 'full': FSDP cannot spread such experts; use DDP, or 'lora'"
            )
        count = sum(_shard(parameter, processes) for parameter in learned)
        weights = sum(_shard(parameter, processes) * parameter.element_size() for parameter in parameters)
        buffers = _gathered(model, bf16)
    return Memory(weights, FLOAT32 * count, 2 * FLOAT32 * count, buffers, activations, step=FLOAT32 * count)


def _shard(parameter: nn.Parameter, processes: int) -> int:
    """Elements on the first device: FSDP2 cuts along the first dimension."""
    return ceil(len(parameter) / processes) * (parameter.numel() // len(parameter))


def _gathered(model: RSMoEForConditionalGeneration, bf16: bool) -> int:
    """What FSDP holds beside its shards: all that is in no layer, two layers, and their gradients."""

    def size(module: nn.Module) -> int:
        total = 0
        for parameter in module.parameters():
            width = 2 if bf16 else parameter.element_size()
            total += parameter.numel() * width * (2 if parameter.requires_grad else 1)
        return total

    layers = [size(layer) for layer in sharded_layers(model)]
    return size(model) - sum(layers) + GATHERED_LAYERS * max(layers)


def _attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any, **__: Any) -> int:
    """Queries times keys, and weights times values; each [batch_size, heads, tokens, width]."""
    return 2 * query.shape[:-1].numel() * key.shape[-2] * (query.shape[-1] + value.shape[-1])


def _attention_backward(gradient: torch.Tensor, *inputs: Any, **kwargs: Any) -> int:
    """Five products in place of two: the weights are computed again."""
    return _attention(*inputs, **kwargs) * 5 // 2


# torch's count of each operation, and of the kernels of the CPU, which it leaves out and fake tensors run through.
_FLOPS: dict[Any, Any] = {
    **flop_registry,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}


class PeakMemory(TorchDispatchMode):
    """Counts the bytes of all tensors that operations make while it is on: those alive, and their peak; and what is
    multiplied and added, by torch's own formulas of each operation.

    Works for real and for fake tensors. Weights, buffers and finished gradients of `model` are left out.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.alive = self.peak = self.flops = 0
        self._sizes: dict[int, int] = {}
        for tensor in [*model.parameters(), *model.buffers()]:
            self._enter(tensor, counted=False)
        learned = trained_parameters(model).values()
        self._hooks = [p.register_post_accumulate_grad_hook(self._exclude_gradient) for p in learned]

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        for hook in self._hooks:
            hook.remove()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if count := _FLOPS.get(func.overloadpacket):
            self.flops += count(*args, **(kwargs or {}), out_val=output)
        tree_map_only(torch.Tensor, self._enter, output)
        self.peak = max(self.peak, self.alive)
        return output

    def _enter(self, tensor: torch.Tensor, counted: bool = True) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = storage.nbytes() if counted else 0
            self.alive += self._sizes[key]
            weakref.finalize(storage, self._forget, key)

    def _exclude_gradient(self, parameter: torch.Tensor) -> None:
        assert parameter.grad is not None
        key = parameter.grad.untyped_storage()._cdata
        self._forget(key)
        self._sizes[key] = 0

    def _forget(self, key: int) -> None:
        self.alive -= self._sizes.pop(key, 0)


def step_costs(config: RSMoEConfig, recipe: Recipe, batch: Batch, bf16: bool) -> tuple[StepCost, StepCost]:
    """What one step of `batch` costs; images are read as features where the ViT is frozen.

    Returns:
        With activations kept, and with `activation_checkpointing`, where those of a layer are computed again.

    Raises:
        RSMoEError: experts of type `full`, whose sequences are only known at run time.
    """
    if "full" in (config.expert_config.expert_type, config.router_config.expert_type):
        raise RSMoEError(
            "expert_config.expert_type is 'full': what its sequences need is not known before; choose type 'lora'"
        )
    model: Any = without_weights(config, recipe, bf16)
    with FakeTensorMode(allow_non_fake_inputs=True):  # the model begins with meta tensors, which are not fake
        model.to_empty(device="cpu").train()  # fake: nothing is allocated
        model.tie_weights()
        kept = _cost(model, recipe, batch, bf16)
        model.zero_grad()
        model.activation_checkpointing_enable()
        if "lora" in (recipe.language_model, recipe.qformer):
            model.enable_input_require_grads()  # as TRL does where there is LoRA
        return kept, _cost(model, recipe, batch, bf16)


def activation_bytes(config: RSMoEConfig, recipe: Recipe, batch: Batch, bf16: bool) -> tuple[int, int]:
    """The activations alone of `step_costs`."""
    kept, recomputed = step_costs(config, recipe, batch, bf16)
    return kept.activations, recomputed.activations


def _cost(model: RSMoEForConditionalGeneration, recipe: Recipe, batch: Batch, bf16: bool) -> StepCost:
    with PeakMemory(model) as memory:
        _loss(model, recipe, batch, bf16).backward()
    return StepCost(memory.peak, memory.flops)


def _loss(model: RSMoEForConditionalGeneration, recipe: Recipe, batch: Batch, bf16: bool) -> torch.Tensor:
    """What `ExampleTrainer` computes, without reading a value: sequences of all adapters may be in the batch."""
    base, examples, tokens = model.model, batch.examples, batch.tokens
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        instructions = torch.zeros(examples, batch.qformer_tokens, dtype=torch.long)
        vision_config: Any = model.config.vision_config
        size = batch.image_size or vision_config.image_size
        patches = (size // vision_config.patch_size) ** 2 + 1
        images = {"pixel_values": torch.zeros(examples, 3, size, size)}
        if recipe.vision == "frozen":  # features are read from disk
            images = {"image_embeds": torch.zeros(examples, patches, vision_config.hidden_size)}
        features = base.encoder(
            **images, qformer_input_ids=instructions, qformer_attention_mask=torch.ones_like(instructions)
        )
        embeds = base.get_input_embeddings()(torch.zeros(examples, tokens, dtype=torch.long))
        places = torch.zeros(examples, tokens, 1, dtype=torch.bool)
        embeds = embeds.masked_scatter(places, features.to(embeds.dtype))  # [examples, tokens, hidden_size]
        adapters: dict[str, Any] = {}
        if recipe.router == "train" or recipe.experts:
            adapters["adapter_gate"] = base.get_adapter_gate(torch.zeros(examples, dtype=torch.long)).to(embeds.dtype)
        is_eager = base.language_model.config._attn_implementation == "eager"
        mask = torch.ones(examples, 1, tokens, tokens, dtype=torch.float32 if is_eager else torch.bool)
        hidden = base.language_model(
            inputs_embeds=embeds,
            attention_mask=mask,
            position_ids=torch.zeros(examples, tokens, dtype=torch.long),
            use_cache=False,
            **adapters,
        ).last_hidden_state
        logits = model.lm_head(hidden[:, : batch.labels].flatten(0, 1))
    targets = torch.zeros(examples * batch.labels, dtype=torch.long)
    return F.cross_entropy(logits.float(), targets, reduction="none").sum()
