"""(f): the base LM's decode by llama.cpp, from a GGUF file of the same LLM.

What a program without Python between its steps reaches on this processor. It is the original LLM, not the base LM that
stage 1 made of it (same shapes, so the same work); a prompt of words takes the place of the image's features.
"""

import importlib
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

from ..errors_rsmoe import RSMoEError
from ..utils.extras import require


PROMPT_WORD = "image "
TYPES = ("F32", "F16", "Q8_0")  # that a file's weights are written out in


def check_file(file: Path) -> Any:
    """llama-cpp-python's module.

    Raises:
        RSMoEError: there is no such file, it is no GGUF of an LLM, or the library is not installed.
    """
    if not file.is_file():
        raise RSMoEError(f"there is no file {file}; give --gguf a GGUF file of the LLM")
    gguf = require("gguf", "assemble")
    try:
        gguf.GGUFReader(file).fields["general.architecture"].contents()
    except (ValueError, KeyError, IndexError, OSError) as error:
        raise RSMoEError(f"{file} is no GGUF of an LLM ({error}); give --gguf such a file") from error
    try:
        return importlib.import_module("llama_cpp")
    except ImportError as error:
        raise RSMoEError(
            f"--gguf needs llama-cpp-python ({error}): pip install llama-cpp-python, which compiles it, or leave "
            "--gguf out"
        ) from error


def llama(file: Path, threads: int, context: int) -> Any:
    """A model of llama-cpp-python, for prompt and text of `context` tokens together.

    Raises:
        RSMoEError: as of `check_file`, or llama.cpp does not know this LLM.
    """
    library = check_file(file)
    settings = {"n_ctx": context, "n_batch": context, "n_threads": threads, "n_threads_batch": threads}
    try:
        return library.Llama(str(file), verbose=False, **settings)
    except ValueError as error:
        raise RSMoEError(f"llama.cpp cannot load {file} ({error}); give --gguf a GGUF file of the LLM") from error


def decode(model: Any, prompt_tokens: int, new_tokens: int) -> Callable[[], list[int]]:
    """Greedy texts of exactly `new_tokens` after a prompt of `prompt_tokens`, from an empty cache."""
    prompt = model.tokenize((PROMPT_WORD * prompt_tokens).encode(), add_bos=False)[:prompt_tokens]

    def run() -> list[int]:
        model.reset()  # else what it has in common with the last prompt is not read again
        return list(islice(model.generate(prompt, temp=0, reset=True), new_tokens))

    return run


def file_facts(file: Path) -> dict[str, Any]:
    """Types of the weights in a GGUF file and their bytes."""
    from gguf import GGUFReader

    sizes: dict[str, int] = {}
    for tensor in GGUFReader(file).tensors:
        name = tensor.tensor_type.name
        sizes[name] = sizes.get(name, 0) + int(tensor.n_bytes)
    return {"types": sizes, "bytes": sum(sizes.values())}


def write_as(file: Path, target: Path, weight_type: str) -> None:
    """The same GGUF with all matrices of one of `TYPES`; vectors are float32, as llama.cpp has them."""
    from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter
    from gguf.quants import dequantize, quantize

    reader = GGUFReader(file)
    writer = GGUFWriter(target, reader.fields["general.architecture"].contents())
    for field in reader.fields.values():
        if not field.name.startswith("GGUF.") and field.name not in ("general.architecture", "general.file_type"):
            item_type = field.types[-1] if field.types[0] == GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, field.contents(), field.types[0], sub_type=item_type)
    for tensor in reader.tensors:
        weights = dequantize(tensor.data, tensor.tensor_type)
        kind = GGMLQuantizationType[weight_type if weights.ndim > 1 else "F32"]
        writer.add_tensor(tensor.name, quantize(weights, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
