"""The layers of a language model in the form that this processor computes fast, without gradients.

Linear layers get the kernels that were measured (`kernels.py`). Where weights are read so fast, a decoding step waits
for the many small operations between its products and for the Python around them, so Llama's layers do with fewer.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import (
    LlamaAttention,
    LlamaDecoderLayer,
    LlamaMLP,
    LlamaRMSNorm,
    eager_attention_forward,
    rotate_half,
)

from ..adapters_rsmoe import SelectAdapters
from ..low_rank_rsmoe import AddLowRank, add_low_rank
from .kernels import FastLinear, check_kernels, half_product, kernels_of, retyped
from .packing import Weights, pack


class JoinedLinear:
    """Fast linear layers that read the same vectors: one product where their weights are read in half precision, and
    one low-rank product with A. Each product costs some 20 microseconds beside its arithmetic.

    Args:
        layers: of one width of input; nothing is hooked into them but `AddLowRank`.
    """

    packed: Any = None  # the copy of all weights in half precision; set by `Refresh`

    def __init__(self, layers: Sequence[FastLinear]):
        self.layers = layers
        self.kernels = layers[0].kernels
        self.widths: Sequence[int] = [layer.out_features for layer in layers]

    @property
    def in_features(self) -> int:
        """The width of what they read."""
        return self.layers[0].in_features

    @property
    def weights(self) -> Weights:
        """What `packed` is a copy of."""
        return tuple(layer.weight for layer in self.layers)

    @property
    def hooks(self) -> list[AddLowRank | None]:
        """Of each layer; None where it has none."""
        return [cast(Any, next(iter(layer._forward_hooks.values()), None)) for layer in self.layers]

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """What the layers make of the vectors of `x` (num_vectors, in_features), side by side."""
        kernel = self.kernels.of(len(x), self.packed)
        if kernel == "half":
            output = half_product(x, self.packed)
        else:
            output = torch.cat([layer.product(kernel, x, len(x)) for layer in self.layers], dim=-1)
        add_low_rank(self, x, output)
        return output

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "packed"}


class _Parts(NamedTuple):
    """What a decoder layer computes with besides its linear layers; to find a module's attribute takes time."""

    attention: Any
    norms: tuple[LlamaRMSNorm, ...]  # before attention, before the MLP
    activation: Callable[[torch.Tensor], torch.Tensor]
    implementation: str  # of the attention


class FastDecoderLayer(LlamaDecoderLayer):
    """Llama's layer in fewer operations, up to rounding the same numbers. Where it is trained, compiled or wrapped, or
    something is hooked into a part of it, it is transformers' own.

    - Products of the same vectors are one product.
    - Queries and keys are turned together; norms are one operation; sums are made in place.
    - Of one new token, the queries that share a key are positions of one attention: keys and values are not repeated.
    """

    joined: list[JoinedLinear]  # q, k, v; o; gate, up; down
    parts: _Parts | None = None  # where they are plain; set by `look`

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = False,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        parts = self.parts
        is_known = position_embeddings is not None and hidden_states.dtype == torch.float32 and not self.training
        if parts is None or not is_known or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return super().forward(
                hidden_states, attention_mask, position_ids, past_key_values, use_cache, position_embeddings, **kwargs
            )
        for select in parts.attention._forward_pre_hooks.values():
            _, kwargs = select(parts.attention, (), kwargs)
        heads, output, gate_up, down = self.joined
        vectors = hidden_states.reshape(-1, hidden_states.shape[-1])
        projected = heads(_norm(parts.norms[0], vectors)).view(*hidden_states.shape[:2], -1, parts.attention.head_dim)
        attended = self._attend(parts, projected, attention_mask, past_key_values, position_embeddings, kwargs)
        residual = output(attended.reshape(len(vectors), -1)).add_(vectors)
        gate, up = gate_up(_norm(parts.norms[1], residual)).chunk(2, dim=-1)
        return down(parts.activation(gate).mul_(up)).add_(residual).view(hidden_states.shape)

    def look(self) -> None:
        """See whether its parts are those that it was made of, with nothing hooked into them that has to run; before
        each prompt."""
        attention: Any = self.self_attn
        mlp = self.mlp
        linear = (
            *(attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj),
            *(mlp.gate_proj, mlp.up_proj, mlp.down_proj),
        )
        own = (layer for each in self.joined for layer in each.layers)
        norms = (self.input_layernorm, self.post_attention_layernorm)
        others = (attention, mlp, mlp.act_fn, *norms)
        implementation = attention.config._attn_implementation
        is_plain = (
            implementation in ("sdpa", "eager")
            and all(layer is one and _has_only(AddLowRank, layer._forward_hooks) for layer, one in zip(linear, own))
            and not any(layer._forward_pre_hooks for layer in linear)
            and not any(module._forward_hooks or "forward" in module.__dict__ for module in others)
            and not any(module._forward_pre_hooks for module in others[1:])
            and _has_only(SelectAdapters, attention._forward_pre_hooks)
            and all(hook.first_norms is None for hook in attention._forward_pre_hooks.values())
        )
        self.parts = _Parts(attention, norms, mlp.act_fn.forward, implementation) if is_plain else None

    def _attend(self, parts, projected, mask, cache, position_embeddings, kwargs) -> torch.Tensor:
        """What the heads read, from queries, keys and values [batch_size, sequence_length, heads, head_dim]."""
        attention = parts.attention
        batch_size, length, _, head_dim = projected.shape
        cos, sin = (each.unsqueeze(2) for each in position_embeddings)  # [1 or batch_size, length, 1, head_dim]
        num_keys = self.joined[0].widths[1] // head_dim
        turned = projected[:, :, :-num_keys]
        turned = torch.addcmul(turned * cos, rotate_half(turned), sin)
        query, key = turned[:, :, :-num_keys].transpose(1, 2), turned[:, :, -num_keys:].transpose(1, 2)
        value = projected[:, :, -num_keys:].transpose(1, 2)
        keys, values = (key, value) if cache is None else cache.update(key, value, attention.layer_idx)
        if length == 1 and parts.implementation == "sdpa":
            query = query.reshape(batch_size, num_keys, -1, head_dim)
            return F.scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=attention.scaling)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(parts.implementation, eager_attention_forward)
        return attend(attention, query, keys, values, mask, scaling=attention.scaling, **kwargs)[0]

    @classmethod
    def of(cls, layer: LlamaDecoderLayer) -> "FastDecoderLayer":
        """The layer in this form; its parts are the same objects, its linear layers fast ones."""
        attention: Any = layer.self_attn
        mlp: Any = layer.mlp
        fast = retyped(layer, cls)
        fast.joined = [
            JoinedLinear([attention.q_proj, attention.k_proj, attention.v_proj]),
            JoinedLinear([attention.o_proj]),
            JoinedLinear([mlp.gate_proj, mlp.up_proj]),
            JoinedLinear([mlp.down_proj]),
        ]
        return fast


def _norm(norm: LlamaRMSNorm, x: torch.Tensor) -> torch.Tensor:
    return torch.rms_norm(x, norm.weight.shape, norm.weight, norm.variance_epsilon)


def _has_only(kind: type, hooks: dict[int, Any]) -> bool:
    """Whether a module has one hook at most, of this kind."""
    return len(hooks) <= 1 and all(type(hook) is kind for hook in hooks.values())


class Refresh:
    """Pre-hook of a model: before it reads a prompt, packed weights become those of the layers' weights."""

    def __init__(self, layers: Sequence[FastLinear], decoder_layers: Sequence[FastDecoderLayer]):
        self.layers, self.decoder_layers = layers, decoder_layers

    def __call__(self, module, args, kwargs) -> None:
        tokens = kwargs.get("input_ids") if kwargs.get("input_ids") is not None else kwargs.get("inputs_embeds")
        if torch.compiler.is_compiling() or torch.is_grad_enabled() or tokens is None or tokens.shape[1] == 1:
            return
        for layer in self.decoder_layers:
            layer.look()
        readers = linear_products([*self.decoder_layers, *self.layers])
        packable = [each for each in readers if "half" in each.kernels.half and all(map(_is_plain, each.weights))]
        packed = dict(zip(map(id, packable), pack([each.weights for each in packable])))
        for reader in {*self.layers, *readers}:  # another thread may compute with them
            reader.packed = packed.get(id(reader))


def linear_products(modules: Iterable[nn.Module]) -> list[Any]:
    """Who computes the products of linear layers: each `JoinedLinear` of decoder layers, and the linear layers that
    are in none.

    Args:
        modules: decoder layers, and linear layers in and outside them.
    """
    modules = list(modules)
    decoder_layers = [module for module in modules if isinstance(module, FastDecoderLayer)]
    joined = [each for layer in decoder_layers if layer.parts is not None for each in layer.joined]
    within = {id(layer) for each in joined for layer in each.layers}
    alone = [module for module in modules if isinstance(module, nn.Linear) and id(module) not in within]
    return [*joined, *alone]


def _is_plain(weight: torch.Tensor) -> bool:
    """Quantised and split weights have products of their own."""
    return type(weight) is nn.Parameter and (weight.device.type, weight.dtype) == ("cpu", torch.float32)


def _is_replaceable(layer: nn.Module) -> bool:
    return type(layer) is nn.Linear and layer.bias is None and _is_plain(layer.weight)


def use_fast_kernels(model: nn.Module, kernels: str | None = None) -> int:
    """Give the layers of the language model and its head the kernels of this machine. Safe to call again.

    Args:
        model: an `RSMoEForConditionalGeneration`.
        kernels: `"auto"`: those that were measured to be fast here; one of `kernels.KERNELS` for all products that it
            can compute, the others are torch's. By default what `$RSMOE_KERNELS` says, else auto.

    Returns:
        How many linear layers were replaced.

    Raises:
        ValueError: no such kernels; the known ones are listed.
    """
    kernels = check_kernels(kernels)
    decoder: Any = model.get_decoder()  # type: ignore[operator]
    parents = dict.fromkeys([*decoder.modules(), model])
    children = [(parent, *named) for parent in parents for named in parent.named_children()]
    found = [(parent, name, child) for parent, name, child in children if _is_replaceable(child)]
    if not found:  # of a GPU, of half precision, quantised: nothing to measure for
        return 0
    chosen = kernels_of(kernels)
    if {*chosen.plain, *chosen.half} == {"torch"}:
        return 0
    linear = [FastLinear.of(child, chosen) for _, _, child in found]
    for (parent, name, _), fast in zip(found, linear):
        setattr(parent, name, fast)
    layers = []
    for parent, name, child in children:
        if _is_llama(child):
            layers.append(FastDecoderLayer.of(child))
            setattr(parent, name, layers[-1])
    model.register_forward_pre_hook(Refresh(linear, layers), with_kwargs=True)
    return len(linear)


def remove_fast_kernels(model: nn.Module) -> None:
    """Undo `use_fast_kernels`: layers are torch's and transformers' own again, their weights and hooks the same
    objects."""
    for key, hook in list(model._forward_pre_hooks.items()):
        if type(hook) is Refresh:
            del model._forward_pre_hooks[key], model._forward_pre_hooks_with_kwargs[key]
    own: dict[type, type[nn.Module]] = {FastLinear: nn.Linear, FastDecoderLayer: LlamaDecoderLayer}
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if type(layer) in own:
                setattr(parent, name, retyped(layer, own[type(layer)]))


def _is_llama(layer: nn.Module) -> bool:
    """Whether it is a decoder layer of Llama whose linear layers are all fast ones."""
    if type(layer) is not LlamaDecoderLayer:
        return False
    attention, mlp = layer.self_attn, layer.mlp
    norms = (layer.input_layernorm, layer.post_attention_layernorm)
    if (type(attention), type(mlp), *map(type, norms)) != (LlamaAttention, LlamaMLP, LlamaRMSNorm, LlamaRMSNorm):
        return False
    linear = [module for part in (attention, mlp) for module in part.children() if module is not mlp.act_fn]
    return len(linear) == 7 and all(type(module) is FastLinear for module in linear)
