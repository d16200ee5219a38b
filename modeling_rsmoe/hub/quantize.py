"""Smaller weights: half precision, and 8 or 4 bits through transformers' own quantisation settings.

Whatever the dtype, what is small and decides much stays in float32: router and experts (their low-rank weights),
Q-Former, queries and projection; embeddings and norms are never quantised. Measured in docs/how-to/quantization.md
[our decision].
"""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors_rsmoe import RSMoEError
from ..utils.extras import require
from .folders import check_space, check_target, whole_folder


if TYPE_CHECKING:
    from ..configuration_rsmoe import RSMoEConfig
    from ..modeling_rsmoe import RSMoEForConditionalGeneration
    from ..processing_rsmoe import RSMoEProcessor

HALF = ("bfloat16", "float16")
TORCHAO = {"int8": "Int8WeightOnlyConfig", "int8-dynamic": "Int8DynamicActivationInt8WeightConfig"}
DTYPES = ("float32", "bfloat16", "float16", "int8", "int8-dynamic", "nf4")
# Names of modules that are not converted, from their start, as transformers' quantisers read them. Low-rank weights
# are no linear layers.
NOT_CONVERTED = [r"(?:model\.)?(?:encoder\.(?:qformer|query_tokens|projection)|router|reranker)", "lm_head"]


def quantization_config(dtype: str, compute_dtype: str = "float32") -> Any:
    """For `from_pretrained(..., quantization_config=...)`: the linear layers of ViT and base LM in 8 or 4 bits.

    Args:
        dtype: `"int8"`, weights alone, one scale for each output, computed in the dtype of the model (torchao);
            `"int8-dynamic"`, integer products, activations quantised for each token as they come (torchao);
            `"nf4"`, normal-float blocks with quantised scales (bitsandbytes).
        compute_dtype: what nf4 computes in; int8 computes in the dtype of the model.

    Raises:
        RSMoEError: another name, or the library is not installed.
    """
    from transformers import BitsAndBytesConfig, TorchAoConfig

    if dtype in TORCHAO:
        # Of Int8DynamicActivationInt8WeightConfig not the reduced range for CPUs without VNNI: seven bits were five
        # times as far from float32 on one of them.
        config = getattr(require("torchao.quantization", "quantize"), TORCHAO[dtype])
        return TorchAoConfig(config(), modules_to_not_convert=NOT_CONVERTED)
    if dtype != "nf4":
        raise RSMoEError(f"{dtype!r} is no quantisation; known are {', '.join((*TORCHAO, 'nf4'))}.")
    if find_spec("bitsandbytes") is None:
        raise RSMoEError("this needs bitsandbytes, which is not installed: pip install bitsandbytes")
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute_dtype,
        llm_int8_skip_modules=NOT_CONVERTED,
    )


def loading_arguments(dtype: str | None, device: str) -> dict[str, Any]:
    """Arguments of `from_pretrained` for weights of `dtype`.

    Args:
        dtype: one of `DTYPES`; None: float32 on a CPU, else bfloat16, as are the weights that are not quantised.
        device: that the model will run on.

    Raises:
        RSMoEError: another dtype, or the library that it needs is not installed.
    """
    if dtype not in (None, *DTYPES):
        raise RSMoEError(f"{dtype!r} is no type of weights; known are {', '.join(DTYPES)}.")
    if dtype in ("float32", *HALF):
        return {"dtype": dtype}
    default = "float32" if device == "cpu" else "bfloat16"
    if dtype is None:
        return {"dtype": default}
    return {"dtype": default, "quantization_config": quantization_config(dtype, default)}


def weight_bytes(config: "RSMoEConfig", dtype: str, compute_dtype: str = "bfloat16") -> int:
    """Bytes of a model's weights, counted without allocating one.

    Args:
        config: of the model.
        dtype: one of `DTYPES`.
        compute_dtype: of what int8 and nf4 leave as it is and does not stay in float32.
    """
    import torch
    from torch import nn
    from transformers.quantizers.quantizers_utils import should_convert_module

    from ..modeling_rsmoe import RSMoEForConditionalGeneration

    with torch.device("meta"):
        model = RSMoEForConditionalGeneration(config)
    model.tie_weights()
    in_float32 = re.compile("|".join(RSMoEForConditionalGeneration._keep_in_fp32_modules_strict or ()))
    itemsize = getattr(torch, dtype if dtype in ("float32", *HALF) else compute_dtype).itemsize
    total = 0.0
    for name, parameter in model.named_parameters():
        module = model.get_submodule(name.rpartition(".")[0])
        linear = isinstance(module, nn.Linear) and name.endswith("weight")
        linear = linear and should_convert_module(name, NOT_CONVERTED)
        if linear and dtype.startswith("int8"):
            total += parameter.numel() + 5 * parameter.shape[0]  # a scale and a zero of each output
        elif linear and dtype == "nf4":
            # Half a byte each, a byte for each 64, four for each 256 of those: the scales, and the scales' scales.
            total += parameter.numel() * (1 / 2 + 1 / 64 + 4 / (64 * 256))
        else:
            total += parameter.numel() * (4 if in_float32.search(name) else itemsize)
    return round(total)


def save_checkpoint(
    model: "RSMoEForConditionalGeneration",
    processor: "RSMoEProcessor",
    output: Path,
    overwrite: bool = False,
    start: Path | None = None,
) -> Path:
    """Write model and processor as one checkpoint folder, whole or not at all; weights as safetensors in their dtype.

    Args:
        model: quantised or not.
        processor: of the model.
        output: the folder to make.
        overwrite: replace `output` if it is an RS-MoE checkpoint already.
        start: the folder that both were loaded from: its card, sources and records of training come along.

    Returns:
        The folder.

    Raises:
        RSMoEError: `output` holds something else, or the disk is full.
    """
    from .records import carry_records  # with torch

    check_target(output, overwrite)
    check_space(model.get_memory_footprint(), output)
    with whole_folder(output, overwrite) as folder, _short_metadata(getattr(model, "hf_quantizer", None)):
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        if start is not None:
            carry_records(start, folder, output.name)
    return output


@contextmanager
def _short_metadata(quantizer: Any) -> Iterator[None]:
    """Within: torchao's metadata is saved of quantised weights alone: loading reads all of it for every weight."""
    if quantizer is None:
        yield
        return
    get_all = quantizer.get_state_dict_and_metadata

    def get_short(model: Any) -> tuple[Any, dict[str, str]]:
        state, metadata = get_all(model)
        tensors = {name: text for name, text in metadata.items() if name != "tensor_names"}
        quantised = {name: text for name, text in tensors.items() if json.loads(text)["_type"] != "Tensor"}
        return state, {**quantised, "tensor_names": json.dumps(list(quantised))} if quantised else metadata

    quantizer.get_state_dict_and_metadata = get_short
    try:
        yield
    finally:
        del quantizer.get_state_dict_and_metadata
