"""A checkpoint's folder is checked before a library opens a file of it, and its weights once they are there.

Every command, the server and every training open checkpoints here. What can go wrong is told in one line. A plain
`from_pretrained` checks nothing of this [our decision: remote code stays small]; `generate` then refuses logits that
are not finite.
"""

import math
import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors_rsmoe import RSMoEError, first_line
from ..utils.files import check_input, parse_json
from ..utils.provenance import CHECKPOINT_FILES


if TYPE_CHECKING:
    import torch

    from ..configuration_rsmoe import RSMoEConfig
    from ..processing_rsmoe import RSMoEProcessor

REMEDY = "assemble or download it again"
PICKLES = (".bin", ".pth", ".pt", ".ckpt")
_INDEX = "model.safetensors.index.json"
_SETTINGS = ("config.json", "generation_config.json", "processor_config.json", "preprocessor_config.json")
# Smallest and largest value of a setting, wherever it stands; far beyond any model of this kind [our decision]. What
# is larger would be built for hours, or fill the memory before it is compared with the weights.
LIMITS = {
    **dict.fromkeys(("num_hidden_layers", "num_attention_heads", "num_key_value_heads"), (1, 1_000)),
    **dict.fromkeys(("hidden_size", "intermediate_size"), (1, 200_000)),
    **dict.fromkeys(("vocab_size", "max_position_embeddings"), (1, 10_000_000)),
    **dict.fromkeys(("image_size", "patch_size", "height", "width", "shortest_edge"), (1, 4_096)),
    **dict.fromkeys(("num_query_tokens", "r"), (1, 10_000)),
    **dict.fromkeys(("reranker_rank", "reranker_buckets", "reranker_vocab_size"), (0, 10_000_000)),
    **dict.fromkeys(("num_beams", "detail_num_beams", "num_return_sequences"), (1, 100)),
    **dict.fromkeys(("max_new_tokens", "router_max_new_tokens", "detail_max_new_tokens"), (1, 100_000)),
}


@contextmanager
def loading_errors(what: str, folder: str | Path) -> Iterator[None]:
    """Within: what libraries raise over bad files of `what` ("the checkpoint") becomes an `RSMoEError`."""
    try:
        yield
    except RSMoEError:
        raise
    except ImportError as error:  # of a checkpoint that is quantised
        raise RSMoEError(
            f'{what} {folder} needs a library that is not installed ({error}): pip install "rsmoe[quantize]"'
        ) from error
    except Exception as error:  # libraries raise errors of any class for a damaged file
        raise RSMoEError(f"{what} {folder} cannot be loaded ({first_line(error)}): {REMEDY}") from error


# ---- before


def check_folder(folder: str | Path) -> None:
    """Refuse a checkpoint's folder that should not be opened.

    Raises:
        RSMoEError: a file is no regular file, or is a link out of the folder; weights are missing, pickles, or lie
            elsewhere by their index; a setting has a value that no model has, or names weights or code elsewhere.
    """
    folder = Path(folder)
    root = folder.resolve()
    # The Hub's cache keeps the files of a repository in `blobs` and links to them.
    places = (root, root.parent.parent / "blobs") if root.parent.name == "snapshots" else (root,)
    for file in [*folder.glob("[!.]*"), *folder.glob("[!.]*/[!.]*")]:
        if file.suffix not in CHECKPOINT_FILES:
            continue
        check_input(file, "a file of a checkpoint")
        if not any(file.resolve().is_relative_to(place) for place in places):
            raise RSMoEError(f"{file} is a link to {file.resolve()}, outside the checkpoint: copy the file there")
    if (folder / "adapter_config.json").exists():
        raise RSMoEError(f"{folder}/adapter_config.json would have weights loaded from elsewhere: remove it")
    for name in _SETTINGS:
        if (folder / name).exists():
            _check_settings(read_json(folder / name), folder / name)
    safetensors_of(folder)
    if (folder / _INDEX).exists():
        _check_index(folder / _INDEX)


def safetensors_of(folder: Path) -> list[Path]:
    """The safetensors of a folder; pickles in their place are refused unread, since loading one can run any code."""
    safetensors = sorted(folder.glob("*.safetensors"))
    pickles = [file for file in (folder, *sorted(folder.glob("*"))) if file.suffix in PICKLES and file.is_file()]
    if pickles and not safetensors:
        remedy = "give the weights as safetensors (https://huggingface.co/spaces/safetensors/convert)."
        raise RSMoEError(f"{pickles[0]} is a pickle, which can run any code, so it is not opened: {remedy}")
    if not safetensors:
        raise RSMoEError(f"{folder} has no *.safetensors: give the folder of a complete checkpoint.")
    return safetensors


def read_json(file: Path) -> Any:
    """What a JSON file of a checkpoint holds.

    Raises:
        RSMoEError: it is no file, or no JSON.
    """
    check_input(file, "a file of a checkpoint")
    try:
        return parse_json(file.read_bytes())
    except (OSError, ValueError) as error:
        raise RSMoEError(f"{file} cannot be read ({first_line(error)}): {REMEDY}") from error


def _check_index(file: Path) -> None:
    try:
        names = set(read_json(file)["weight_map"].values())
    except (KeyError, TypeError, AttributeError) as error:
        raise RSMoEError(f"{file} is no index of weights ({first_line(error)}): {REMEDY}") from error
    for name in names:
        if not isinstance(name, str) or os.path.basename(name) != name or not name.endswith(".safetensors"):
            raise RSMoEError(f"{file} names weights in {name!r}, expected a *.safetensors beside it: {REMEDY}")
        check_input(file.with_name(name), "a file of weights")


def _check_settings(value: Any, file: Path, name: str = "") -> None:
    """Every value in a file of settings; `name` is its path there, such as text_config.hidden_size."""
    key = name.rpartition(".")[2]
    if isinstance(value, dict):
        for inner in value:
            _check_settings(value[inner], file, f"{name}.{inner}" if name else inner)
    elif isinstance(value, list):
        for item in value:
            _check_settings(item, file, name)
    elif isinstance(value, float) and not math.isfinite(value):
        raise RSMoEError(f"{file}: {name} is {value}, expected a finite number: {REMEDY}")
    elif key.endswith("attn_implementation") and "/" in str(value):
        raise RSMoEError(f"{file}: {name} is {value!r}, code on the Hub: leave it out")
    elif key in LIMITS:
        check_limit(key, value, f"{file}: {name}")


def check_limit(name: str, value: Any, shown: str | None = None) -> None:
    """Refuse a setting beyond its `LIMITS`; None is taken. Errors call it `shown`, by default `name`."""
    low, high = LIMITS[name]
    if value is not None and (type(value) is not int or not low <= value <= high):
        raise RSMoEError(f"{shown or name} is {value!r}, expected a whole number from {low} to {high:,}: correct it")


# ---- opening


def open_config(folder: str | Path) -> "RSMoEConfig":
    """The configuration of a checkpoint, checked as of `check_folder`."""
    from ..configuration_rsmoe import RSMoEConfig

    check_folder(folder)
    with loading_errors("the checkpoint", folder):
        return RSMoEConfig.from_pretrained(folder)


def open_processor(folder: str | Path) -> "RSMoEProcessor":
    """The processor of a checkpoint, checked: it reads a gray image under an instruction.

    Raises:
        RSMoEError: as of `check_folder`; a part of it is missing or damaged.
    """
    from PIL import Image

    from .. import RSMoEProcessor  # registered: else its tokenizer asks whether the folder's own code may run
    from ..prompting_rsmoe import DEFAULT_INSTRUCTION

    check_folder(folder)
    with loading_errors("the processor of", folder):
        processor: Any = RSMoEProcessor.from_pretrained(folder)
        processor(images=Image.new("RGB", (8, 8)), text=DEFAULT_INSTRUCTION, return_tensors="pt")
    return processor


def open_model(cls: Any, folder: str | Path, what: str = "the checkpoint", **arguments: Any) -> Any:
    """A model of a checkpoint, checked, its weights too.

    Args:
        cls: its class.
        folder: of the checkpoint.
        what: for errors.
        arguments: of `from_pretrained`.

    Raises:
        RSMoEError: as of `check_folder`, `check_complete` and `check_finite`; the files do not fit the class.
    """
    check_folder(folder)
    with loading_errors(what, folder):
        model, info = cls.from_pretrained(folder, output_loading_info=True, use_safetensors=True, **arguments)
    check_complete(info, folder)
    check_finite(model, folder)
    return model


# ---- after


def check_complete(info: Mapping[str, Collection[str]], folder: str | Path) -> None:
    """Refuse a checkpoint that lacks a weight: transformers fills what is missing with random numbers. `info` is from
    `from_pretrained(..., output_loading_info=True)`."""
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise RSMoEError(f"the checkpoint {folder} lacks {len(missing)} weights, such as {missing[0]}: {REMEDY}")


def check_tokens(config: "RSMoEConfig", processor: "RSMoEProcessor") -> None:
    """Raise unless the special tokens have the configuration's ids: a sequence's token chooses its adapter."""
    tokens = ["<image>", "<prompt>", "<router>", *(f"<{name}>" for name in config.expert_names)]
    config_ids = [config.image_token_id, config.prompt_token_id, *config.adapter_token_ids]
    tokenizer_ids = processor.tokenizer.convert_tokens_to_ids(tokens)
    if tokenizer_ids != config_ids:
        raise RSMoEError(f"the tokenizer gives {tokens} the ids {tokenizer_ids}; config.json says {config_ids}.")
    queries, expected = processor.num_query_tokens, config.num_query_tokens
    if queries != expected:
        raise RSMoEError(f"processor_config.json says num_query_tokens {queries}, config.json {expected}.")
    size, expected = len(processor.tokenizer), config.text_config.vocab_size
    if size != expected:
        raise RSMoEError(f"the tokenizer has {size} tokens; config.json says text_config.vocab_size {expected}.")
    size, most = len(processor.qformer_tokenizer), config.qformer_config.vocab_size
    if size > most:
        raise RSMoEError(f"qformer_tokenizer has {size} tokens; config.json says qformer_config.vocab_size {most}.")


def check_finite(model: "torch.nn.Module", folder: str | Path) -> None:
    """Refuse a checkpoint with a weight that is not finite: one in one expert empties every text, in silence."""
    from .pages import release_file_pages

    for name, weight in model.state_dict().items():
        if not is_finite(weight):
            raise RSMoEError(
                f"the checkpoint {folder}: {name} is not finite in {weight.dtype} (nan or infinity): {REMEDY}"
            )
        release_file_pages(weight)


def is_finite(tensor: "torch.Tensor") -> bool:
    """Whether all numbers of a tensor are, also of a quantised one. One pass that allocates nothing."""
    if hasattr(tensor, "__tensor_flatten__"):  # of a quantiser: its scales
        return all(is_finite(getattr(tensor, name)) for name in tensor.__tensor_flatten__()[0])
    if not tensor.is_floating_point() or not tensor.numel() or tensor.is_meta:
        return True
    return all(math.isfinite(value) for value in tensor.detach().aminmax())
