"""Turning the files of the frozen parts into state dicts and tokenizers, in float32.

What flows through: a GGUF file, an ONNX graph or safetensors go in; tensors under the names of transformers' own
`LlamaModel`, `Dinov2Model` and `InstructBlipQFormerModel` come out. Files are read as data: no graph is run, no code in
them executed. Knows nothing about RS-MoE, downloads or folders.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import BertTokenizer, PreTrainedTokenizerFast

from ..errors_rsmoe import RSMoEError


StateDict = dict[str, torch.Tensor]

# GGUF's names of a Llama layer's tensors -> transformers'.
_LLAMA_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_LLAMA_NAMES = {"token_embd": "embed_tokens", "output_norm": "norm"}
_GGUF_SPECIAL_TOKEN = 3  # LLAMA_TOKEN_TYPE_CONTROL
# Names in DINOv2's checkpoints -> names in transformers 5's Dinov2Model.
_DINOV2_RENAMES = {
    "attention.attention.query": "attention.q_proj",
    "attention.attention.key": "attention.k_proj",
    "attention.attention.value": "attention.v_proj",
    "attention.output.dense": "attention.o_proj",
}
# SmolLM2's chat roles; its padding token stays free for padding (its own tokenizer pads with the end-of-turn token,
# which a loss over padded completions could then not tell from a real end) [our decision].
_LLM_SPECIAL_TOKENS = {
    "bos_token": "<|im_start|>",
    "eos_token": "<|im_end|>",
    "unk_token": "<|endoftext|>",
    "pad_token": "<|endoftext|>",
}


def open_gguf(path: str | Path) -> Any:
    """A `gguf.GGUFReader` of the file. Its tensors are memory-mapped: keep the file until they are converted."""
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise RSMoEError("reading the LLM's GGUF file needs the package gguf: run `pip install gguf`.") from error
    try:
        return GGUFReader(path)
    except (ValueError, KeyError, IndexError, OSError) as error:
        raise RSMoEError(f"{path} cannot be read as a GGUF file ({error}): fetch it again.") from error


def llama_from_gguf(reader: Any) -> StateDict:
    """`LlamaModel`'s weights out of a GGUF file, dequantized; equal to transformers' own GGUF reader.

    Args:
        reader: of `open_gguf`.
    """
    from gguf.quants import dequantize

    if _field(reader, "general.architecture") != "llama":
        raise RSMoEError(f"the GGUF file holds a {_field(reader, 'general.architecture')!r} model, expected 'llama'.")
    heads = {
        "attn_q": _field(reader, "llama.attention.head_count"),
        "attn_k": _field(reader, "llama.attention.head_count_kv"),
    }
    state: StateDict = {}
    for tensor in reader.tensors:
        weight = torch.from_numpy(np.array(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32))  # [out, in]
        match = re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", tensor.name)
        if match and match[2] in _LLAMA_LAYER_NAMES:
            if match[2] in heads:
                weight = _unpermute(weight, heads[match[2]])
            state[f"layers.{match[1]}.{_LLAMA_LAYER_NAMES[match[2]]}.weight"] = weight
        elif tensor.name.removesuffix(".weight") in _LLAMA_NAMES:
            state[f"{_LLAMA_NAMES[tensor.name.removesuffix('.weight')]}.weight"] = weight
        else:
            raise RSMoEError(f"the GGUF file holds a tensor {tensor.name!r} that a Llama decoder does not have.")
    return state


def gguf_config(reader: Any) -> dict[str, Any]:
    """The `LlamaConfig` fields that a GGUF file states, for comparing with a checkpoint's own configuration."""
    names = {
        "vocab_size": "llama.vocab_size",
        "hidden_size": "llama.embedding_length",
        "intermediate_size": "llama.feed_forward_length",
        "num_hidden_layers": "llama.block_count",
        "num_attention_heads": "llama.attention.head_count",
        "num_key_value_heads": "llama.attention.head_count_kv",
        "rope_theta": "llama.rope.freq_base",
        "rms_norm_eps": "llama.attention.layer_norm_rms_epsilon",
    }
    return {name: _field(reader, key) for name, key in names.items()}


def tokenizer_from_gguf(reader: Any) -> PreTrainedTokenizerFast:
    """SmolLM2's tokenizer out of the GGUF file's vocabulary and merges."""
    tokens, types = _field(reader, "tokenizer.ggml.tokens"), _field(reader, "tokenizer.ggml.token_type")
    if _field(reader, "tokenizer.ggml.pre") != "smollm":
        raise RSMoEError(
            f"the GGUF file's tokenizer splits text as {_field(reader, 'tokenizer.ggml.pre')!r}, expected 'smollm'."
        )
    merges = [tuple(merge.split(" ")) for merge in _field(reader, "tokenizer.ggml.merges")]
    tokenizer = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = [token for token, kind in zip(tokens, types, strict=True) if kind == _GGUF_SPECIAL_TOKEN]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return _llm_tokenizer(tokenizer, model_max_length=_field(reader, "llama.context_length"))


def tokenizer_from_json(path: str | Path, model_max_length: int) -> PreTrainedTokenizerFast:
    """The same tokenizer out of the Hub repository's tokenizer.json."""
    return _llm_tokenizer(Tokenizer.from_file(str(path)), model_max_length)


def bert_tokenizer_from_json(path: str | Path, model_max_length: int) -> BertTokenizer:
    """MiniLM's tokenizer, for the Q-Former's instructions. Cuts and pads as it is called, not as its file says."""
    return BertTokenizer(tokenizer_object=Tokenizer.from_file(str(path)), model_max_length=model_max_length)


def llama_from_safetensors(path: str | Path) -> StateDict:
    """`LlamaModel`'s weights out of a LlamaForCausalLM checkpoint (the tied head is left out)."""
    state = _read_safetensors(path)
    return {name.removeprefix("model."): value for name, value in state.items() if name != "lm_head.weight"}


def dinov2_from_onnx(path: str | Path, num_layers: int) -> StateDict:
    """`Dinov2Model`'s weights, first `num_layers` layers, out of the ONNX saliency model around that backbone.

    The last layers were tuned to saliency, so the model ends earlier; its final layer norm becomes the identity's
    (weight 1, bias 0) because the backbone's own was fitted to the last layer's output [our decision].
    """
    try:
        import onnx
    except ImportError as error:
        raise RSMoEError(
            "reading the image encoder's ONNX file needs the package onnx: run `pip install onnx`."
        ) from error
    from google.protobuf.message import DecodeError

    try:
        graph = onnx.load(str(path), load_external_data=False).graph
    except DecodeError as error:
        raise RSMoEError(f"{path} cannot be read as an ONNX file ({error}): fetch it again.") from error
    values = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    backbone = {name.removeprefix("backbone."): v for name, v in values.items() if name.startswith("backbone.")}
    # The export transposed the linear layers' weights and renamed them; the nodes that use them tell which they are.
    for node in graph.node:
        match = re.fullmatch(r"/backbone/encoder/layer\.(\d+)/(.+)/MatMul", node.name)
        if match and node.input[1] in values:
            backbone[f"encoder.layer.{match[1]}.{match[2].replace('/', '.')}.weight"] = values[node.input[1]].T
    # The position embeddings are renamed too, and come in two: the class token's and the patches'.
    width = backbone["embeddings.cls_token"].shape[-1] if "embeddings.cls_token" in backbone else 0
    loose = [
        v for name, v in values.items() if v.ndim == 3 and v.shape[-1] == width and not name.startswith("backbone.")
    ]
    loose.sort(key=lambda value: value.shape[1])
    if len(loose) != 2 or loose[0].shape[1] != 1:
        raise RSMoEError(f"{path} is not the expected model: its position embeddings were not found. Fetch it again.")
    backbone["embeddings.position_embeddings"] = np.concatenate(loose, axis=1)
    backbone["embeddings.mask_token"] = np.zeros((1, width), np.float32)  # for pretraining only; the export dropped it
    return _cut_dinov2(
        {name: torch.from_numpy(np.array(value, order="C")) for name, value in backbone.items()}, num_layers
    )


def dinov2_from_safetensors(path: str | Path, num_layers: int) -> StateDict:
    """The same out of a Dinov2Model checkpoint."""
    return _cut_dinov2({name.removeprefix("dinov2."): v for name, v in _read_safetensors(path).items()}, num_layers)


def qformer_from_bert(path: str | Path) -> StateDict:
    """A Q-Former's self-attention, feed-forward layers (of the text and of the queries) and embeddings out of a BERT.

    The Q-Former has no token types: type 0's embedding is added to every position's, so that the text alone passes
    through it as through BERT. Its cross-attention has no counterpart in BERT and is left out, BERT's pooler too.
    """
    bert = {name.removeprefix("bert."): value for name, value in _read_safetensors(path).items()}
    token_type = bert.pop("embeddings.token_type_embeddings.weight")[0]  # [width]
    bert["embeddings.position_embeddings.weight"] = bert["embeddings.position_embeddings.weight"] + token_type
    state: StateDict = {}
    for name, value in bert.items():
        if name.startswith("pooler.") or name == "embeddings.position_ids":
            continue
        name = name.replace("embeddings.LayerNorm", "embeddings.layernorm").replace(
            "attention.self.", "attention.attention."
        )
        state[name] = value
        feed_forward = re.fullmatch(r"(encoder\.layer\.\d+\.(?:intermediate|output))(\..+)", name)
        if feed_forward:
            state[f"{feed_forward[1]}_query{feed_forward[2]}"] = value
    return state


def load_part(
    module: torch.nn.Module, state: Mapping[str, torch.Tensor], part: str, new: str | None = None
) -> list[str]:
    """Put a converted part's weights into `module`: every weight given must fit, every weight of `module` must be given.

    Args:
        part: the part's name, for the error.
        new: a regular expression; weights of `module` whose names it finds need not be given.

    Returns:
        The names in `module` that were filled.
    """
    own = module.state_dict()
    wrong = [
        f"{name} {list(value.shape)} (the model has {list(own[name].shape) if name in own else 'none'})"
        for name, value in state.items()
        if name not in own or own[name].shape != value.shape
    ]
    missing = [name for name in own if name not in state and not (new and re.search(new, name))]
    if wrong or missing:
        problem = f"does not fit: {', '.join(wrong[:3])}" if wrong else f"lacks {', '.join(missing[:3])}"
        raise RSMoEError(f"the source of {part} {problem}. Check config.json against sources.yaml.")
    module.load_state_dict(state, strict=False)
    return list(state)


def _field(reader: Any, key: str) -> Any:
    if key not in reader.fields:
        raise RSMoEError(f"the GGUF file lacks the field {key!r}: it is not the expected model.")
    return reader.fields[key].contents()


def _unpermute(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Undo llama.cpp's order of q and k rows: it keeps the two halves of each rotary pair side by side. [out, in]"""
    return (
        weight.reshape(heads, weight.shape[0] // heads // 2, 2, -1).transpose(1, 2).reshape(weight.shape).contiguous()
    )


def _llm_tokenizer(tokenizer: Tokenizer, model_max_length: int) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=model_max_length,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        **_LLM_SPECIAL_TOKENS,
    )


def _cut_dinov2(state: StateDict, num_layers: int) -> StateDict:
    cut: StateDict = {}
    for name, value in state.items():
        layer = re.match(r"encoder\.layer\.(\d+)\.", name)
        if layer and int(layer[1]) >= num_layers:
            continue
        for old, new in _DINOV2_RENAMES.items():
            name = name.replace(old, new)
        cut[name] = value.float()
    cut["layernorm.weight"] = torch.ones_like(cut["layernorm.weight"])
    cut["layernorm.bias"] = torch.zeros_like(cut["layernorm.bias"])
    return cut


def _read_safetensors(path: str | Path) -> StateDict:
    try:
        return {name: value.float() if value.is_floating_point() else value for name, value in load_file(path).items()}
    except SafetensorError as error:
        raise RSMoEError(f"{path} cannot be read as safetensors ({error}): fetch it again.") from error
