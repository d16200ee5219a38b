"""(f): the base LM's decode by llama.cpp, from a GGUF file of the same LLM.

What a program without Python between its steps reaches on this processor. It is the original LLM, not the base LM that
stage 1 made of it (same shapes, so the same work); a prompt of words takes the place of the image's features.
"""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors_rsmoe import RSMoEError


PROMPT_WORD = "image "


def check_file(file: Path) -> Any:
    """llama-cpp-python's module.

    Raises:
        RSMoEError: there is no such file, it is no GGUF of an LLM, or the library is not installed.
    """
    if not file.is_file():
        raise RSMoEError(f"there is no file {file}; give --gguf a GGUF file of the LLM")
    from gguf import GGUFReader

    try:
        GGUFReader(file).fields["general.architecture"].contents()
    except (ValueError, KeyError, IndexError, OSError) as error:
        raise RSMoEError(f"{file} is no GGUF of an LLM ({error}); give --gguf such a file") from error
    try:
        return importlib.import_module("llama_cpp")
    except ImportError as error:
        raise RSMoEError(
            f"--gguf needs llama-cpp-python ({error}): pip install llama-cpp-python, which compiles it, or leave --gguf out"
        ) from error


def llama(file: Path, threads: int, context: int) -> Any:
    """A model of llama-cpp-python.

    Raises:
        RSMoEError: as of `check_file`, or llama.cpp does not know this LLM.
    """
    library = check_file(file)
    try:
        return library.Llama(
            str(file), n_ctx=context, n_threads=threads, n_threads_batch=threads, verbose=False, n_batch=context
        )
    except ValueError as error:
        raise RSMoEError(f"llama.cpp cannot load {file} ({error}); give --gguf a GGUF file of the LLM") from error


def decode(model: Any, prompt_tokens: int, new_tokens: int) -> Callable[[], list[int]]:
    """Greedy texts of exactly so many tokens after a prompt of so many, from an empty cache."""
    words = model.tokenize((PROMPT_WORD * prompt_tokens).encode(), add_bos=False)
    prompt = words[:prompt_tokens]

    def run() -> list[int]:
        said: list[int] = []
        model.reset()  # else what it has in common with the last prompt is not read again
        for token in model.generate(prompt, temp=0, reset=True):
            said.append(token)
            if len(said) == new_tokens:
                break
        return said

    return run


def file_facts(file: Path) -> dict[str, Any]:
    """Types of the weights in a GGUF file and their bytes."""
    from gguf import GGUFReader

    sizes: dict[str, int] = {}
    for tensor in GGUFReader(file).tensors:
        kind = tensor.tensor_type.name
        sizes[kind] = sizes.get(kind, 0) + int(tensor.n_bytes)
    return {"types": sizes, "bytes": sum(sizes.values())}


def write_float(file: Path, target: Path) -> None:
    """The same GGUF with all weights in float32: what our own weights are."""
    import numpy as np
    from gguf import GGUFReader, GGUFValueType, GGUFWriter
    from gguf.quants import dequantize

    reader = GGUFReader(file)
    architecture = reader.fields["general.architecture"].contents()
    writer = GGUFWriter(target, architecture)
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name in ("general.architecture", "general.file_type"):
            continue
        kind = field.types[0]
        of_items = field.types[-1] if kind == GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), kind, sub_type=of_items)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, dequantize(tensor.data, tensor.tensor_type).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
