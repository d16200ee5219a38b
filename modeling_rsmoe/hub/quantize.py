"""Smaller weights: half precision, and 8 or 4 bits through transformers' own quantisation settings.

Whatever the type, what is small and decides much stays in float32: router and experts (their low-rank weights), Q-Former,
queries and projection; embeddings and norms are never quantised. Measured in docs/quantization.md [our decision].
"""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors_rsmoe import RSMoEError
from ..utils.extras import require
from .folders import check_output, check_space, whole_folder


if TYPE_CHECKING:
    from ..configuration_rsmoe import RSMoEConfig
    from ..modeling_rsmoe import RSMoEForConditionalGeneration
    from ..processing_rsmoe import RSMoEProcessor

HALF = ("bfloat16", "float16")
DTYPES = ("float32", "bfloat16", "float16", "int8", "int8-dynamic", "nf4")
# As the quantisers of transformers read them: from the start of a module's name. Low-rank weights are no linear layers.
KEPT = [r"(?:model\.)?encoder\.(?:qformer|query_tokens|projection)", r"(?:model\.)?(?:router|reranker)", "lm_head"]


def quantization_config(dtype: str, compute_dtype: str = "float32") -> Any:
    """For `from_pretrained(..., quantization_config=...)`: the linear layers of ViT and base LM in 8 or 4 bits.

    Args:
        dtype: `"int8"`, weights alone, one scale for each row, computed in the type of the model (torchao);
            `"int8-dynamic"`, products of whole numbers, activations quantised for each token as they come (torchao);
            `"nf4"`, normal-float blocks with quantised scales (bitsandbytes).
        compute_dtype: what nf4 computes in; int8 computes in the type of the model.

    Raises:
        RSMoEError: another name, or the library is not installed.
    """
    makers: dict[str, Callable[[], Any]] = {"int8": _int8, "int8-dynamic": _int8_dynamic}
    makers["nf4"] = partial(_nf4, compute_dtype)
    if dtype not in makers:
        raise RSMoEError(f"{dtype!r} is no quantisation; known are {', '.join(makers)}.")
    return makers[dtype]()


def loading_arguments(dtype: str | None, device: str) -> dict[str, Any]:
    """Arguments of `from_pretrained` for weights of `dtype`; what is not quantised, and None, is what suits the device."""
    known = (None, *DTYPES)
    if dtype not in known:
        raise RSMoEError(f"{dtype!r} is no type of weights; known are {', '.join(DTYPES)}.")
    if dtype in ("float32", "bfloat16", "float16"):
        return {"dtype": dtype}
    suited = "float32" if device == "cpu" else "bfloat16"
    settings = {} if dtype is None else {"quantization_config": quantization_config(dtype, suited)}
    return {"dtype": suited, **settings}


def weight_bytes(config: "RSMoEConfig", dtype: str, compute_dtype: str = "bfloat16") -> int:
    """Bytes of a model's weights, counted without allocating one.

    Args:
        dtype: as of `loading_arguments`.
        compute_dtype: of what int8 and nf4 leave as it is and does not stay in float32.
    """
    import torch
    from torch import nn
    from transformers.quantizers.quantizers_utils import should_convert_module

    from ..modeling_rsmoe import RSMoEForConditionalGeneration

    with torch.device("meta"):
        model = RSMoEForConditionalGeneration(config)
    model.tie_weights()
    stays = re.compile("|".join(RSMoEForConditionalGeneration._keep_in_fp32_modules_strict or ()))
    width = getattr(torch, dtype if dtype in HALF else compute_dtype).itemsize if dtype != "float32" else 4
    total = 0.0
    for name, parameter in model.named_parameters():
        module = model.get_submodule(name.rpartition(".")[0])
        linear = isinstance(module, nn.Linear) and name.endswith("weight") and should_convert_module(name, KEPT)
        if linear and dtype.startswith("int8"):
            total += parameter.numel() + 5 * parameter.shape[0]  # a scale and a zero of each row
        elif linear and dtype == "nf4":
            # A half each, a byte for each 64, four for each 256 of those: the scales, and the scales' scales.
            total += parameter.numel() * (1 / 2 + 1 / 64 + 4 / (64 * 256))
        else:
            total += parameter.numel() * (4 if stays.search(name) else width)
    return round(total)


def _int8() -> Any:
    from transformers import TorchAoConfig

    kind = require("torchao.quantization", "quantize").Int8WeightOnlyConfig
    return TorchAoConfig(kind(), modules_to_not_convert=KEPT)


def _int8_dynamic() -> Any:
    from transformers import TorchAoConfig

    kind = require("torchao.quantization", "quantize").Int8DynamicActivationInt8WeightConfig
    # Not torchao's reduced range for CPUs without VNNI: seven bits were five times as far from float32 on one of them.
    return TorchAoConfig(kind(), modules_to_not_convert=KEPT)


def _nf4(compute_dtype: str) -> Any:
    if find_spec("bitsandbytes") is None:
        raise RSMoEError("this needs bitsandbytes, which is not installed: pip install bitsandbytes")
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute_dtype,
        llm_int8_skip_modules=KEPT,
    )


def save_checkpoint(
    model: "RSMoEForConditionalGeneration", processor: "RSMoEProcessor", output: Path, overwrite: bool = False
) -> Path:
    """Write model and processor as one checkpoint folder, whole or not at all; weights as safetensors in the type they have.

    Raises:
        RSMoEError: `output` holds something else, or the disk is full.
    """
    check_output(output, overwrite)
    check_space(model.get_memory_footprint(), output)
    with whole_folder(output) as folder, _short_metadata(getattr(model, "hf_quantizer", None)):
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
    return output


@contextmanager
def _short_metadata(quantizer: Any) -> Iterator[None]:
    """Saving within: torchao's notes on the quantised weights alone. It goes through all notes for each weight that it loads,
    so those on the others, of which there are ten times as many, cost minutes."""
    if quantizer is None:
        yield
        return
    whole = quantizer.get_state_dict_and_metadata

    def short(model: Any) -> tuple[Any, dict[str, str]]:
        state, notes = whole(model)
        names = [
            name for name, note in notes.items() if name != "tensor_names" and json.loads(note)["_type"] != "Tensor"
        ]
        kept = {name: notes[name] for name in names}
        return state, {**kept, "tensor_names": json.dumps(names)} if names else notes

    quantizer.get_state_dict_and_metadata = short
    try:
        yield
    finally:
        del quantizer.get_state_dict_and_metadata
