"""Files of pretrained models -> state dicts and tokenizers, in float32.

GGUF, ONNX or safetensors go in; tensors under transformers' names of `LlamaModel`, `Dinov2Model` and
`InstructBlipQFormerModel` come out. Files are read as data: no graph is run, no code in them executed.
"""

import re
from collections.abc import Mapping
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors.torch import load_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import BertTokenizer, LlamaModel, PreTrainedConfig, PreTrainedTokenizerFast

from ..errors_rsmoe import RSMoEError
from ..inference.loading import check_complete
from ..utils.extras import require
from .folders import reading


StateDict = dict[str, torch.Tensor]

# Added tokens start at the mean of all tokens, moved by this share towards a token each: tokens with equal embeddings
# could not be distinguished where a sequence is passed as embeddings [our decision].
NUDGE = 1e-3

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
_LLM_SPECIAL_TOKENS = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
_LLM_SPECIAL_TOKENS |= {"unk_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}


def open_gguf(path: str | Path) -> Any:
    """A `gguf.GGUFReader` of the file. Its tensors are memory-mapped: keep the file until they are converted."""
    gguf = require("gguf", "assemble")
    with reading(f"{path} cannot be read as a GGUF file"):
        return gguf.GGUFReader(path)


def llama_from_gguf(path: Path) -> tuple[StateDict, PreTrainedConfig]:
    """`LlamaModel`'s weights out of a GGUF file, dequantized by transformers, and the file's configuration."""
    options: dict[str, Any] = {"gguf_file": path.name, "dtype": torch.float32, "output_loading_info": True}
    with redirect_stderr(StringIO()):  # transformers' bar, which cannot be switched off
        model, info = cast(Any, LlamaModel.from_pretrained(path.parent, **options))
    check_complete(info, path)
    return model.state_dict(), model.config


def tokenizer_from_gguf(reader: Any) -> PreTrainedTokenizerFast:
    """SmolLM2's tokenizer out of the GGUF file's vocabulary and merges."""
    tokens, types = _field(reader, "tokenizer.ggml.tokens"), _field(reader, "tokenizer.ggml.token_type")
    if (split := _field(reader, "tokenizer.ggml.pre")) != "smollm":
        raise RSMoEError(f"the GGUF file's tokenizer splits text as {split!r}, expected 'smollm'.")
    merges = [tuple(merge.split(" ")) for merge in _field(reader, "tokenizer.ggml.merges")]
    tokenizer = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=merges))
    digits, text = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, text])
    tokenizer.decoder = decoders.ByteLevel()
    special = [token for token, kind in zip(tokens, types, strict=True) if kind == _GGUF_SPECIAL_TOKEN]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return llm_tokenizer(tokenizer, model_max_length=_field(reader, "llama.context_length"))


def llm_tokenizer(tokenizer: Tokenizer, model_max_length: int) -> PreTrainedTokenizerFast:
    """SmolLM2's tokenizer as our sequences need it, also out of the Hub repository's tokenizer.json."""
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=model_max_length,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        **_LLM_SPECIAL_TOKENS,
    )


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
    onnx = require("onnx", "assemble")
    with reading(f"{path} cannot be read as an ONNX file"):
        graph = onnx.load(str(path), load_external_data=False).graph
    values = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    backbone = {name.removeprefix("backbone."): v for name, v in values.items() if name.startswith("backbone.")}
    # The export transposed the linear layers' weights and renamed them; the nodes that use them tell which they are.
    for node in graph.node:
        match = re.fullmatch(r"/backbone/encoder/layer\.(\d+)/(.+)/MatMul", node.name)
        if match and node.input[1] in values:
            backbone[f"encoder.layer.{match[1]}.{match[2].replace('/', '.')}.weight"] = values[node.input[1]].T
    # The position embeddings are renamed too, and come in two: the class token's and the patches'.
    width = backbone["embeddings.cls_token"].shape[-1] if "embeddings.cls_token" in backbone else 0
    renamed = {name: value for name, value in values.items() if not name.startswith("backbone.")}
    tables = [value for value in renamed.values() if value.ndim == 3 and value.shape[-1] == width]
    tables.sort(key=lambda value: value.shape[1])
    if len(tables) != 2 or tables[0].shape[1] != 1:
        raise RSMoEError(f"{path} is not the expected model: its position embeddings were not found. Fetch it again.")
    backbone["embeddings.position_embeddings"] = np.concatenate(tables, axis=1)
    backbone["embeddings.mask_token"] = np.zeros((1, width), np.float32)  # for pretraining only; the export dropped it
    state = {name: torch.from_numpy(np.array(value, order="C")) for name, value in backbone.items()}
    return _cut_dinov2(state, num_layers)


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
        name = name.replace("embeddings.LayerNorm", "embeddings.layernorm")
        name = name.replace("attention.self.", "attention.attention.")
        state[name] = value
        feed_forward = re.fullmatch(r"(encoder\.layer\.\d+\.(?:intermediate|output))(\..+)", name)
        if feed_forward:
            state[f"{feed_forward[1]}_query{feed_forward[2]}"] = value
    return state


def add_tokens(table: torch.Tensor, vocab_size: int) -> torch.Tensor:
    """Embeddings [tokens, width] -> [vocab_size, width]: those of the special tokens that RS-MoE adds come last."""
    mean = table.mean(dim=0, keepdim=True, dtype=torch.float32)
    added = mean + NUDGE * (table[: vocab_size - len(table)].float() - mean)
    return torch.cat([table, added.to(table.dtype)])  # no second table in float32


def load_module(
    module: torch.nn.Module, state: Mapping[str, torch.Tensor], name: str, new: str | None = None
) -> list[str]:
    """Put pretrained weights into `module`: each of `state` must fit, and none of `module` may be missing.

    Args:
        module: of our model.
        state: weights by their names in `module`.
        name: of the module, for the error.
        new: a regular expression; weights of `module` whose names it finds may be missing.

    Returns:
        The names in `module` that were filled.

    Raises:
        RSMoEError: names the weights that do not fit or are missing.
    """
    shapes = {key: list(value.shape) for key, value in module.state_dict().items()}
    problems = [
        f"does not fit: {key} {list(value.shape)} (the model has {shapes.get(key, 'none')})"
        for key, value in state.items()
        if shapes.get(key) != list(value.shape)
    ]
    problems += [f"lacks {key}" for key in shapes if key not in state and not (new and re.search(new, key))]
    if problems:
        raise RSMoEError(f"the source of {name} {', '.join(problems[:3])}. Check config.json against sources.yaml.")
    module.load_state_dict(state, strict=False)
    return list(state)


def _field(reader: Any, key: str) -> Any:
    if key not in reader.fields:
        raise RSMoEError(f"the GGUF file lacks the field {key!r}: it is not the expected model.")
    return reader.fields[key].contents()


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
    with reading(f"{path} cannot be read as safetensors"):
        return {name: value.float() if value.is_floating_point() else value for name, value in load_file(path).items()}
