"""The checkpoint that stage 1 of rs-moe-1b, -3b and -7b starts from, out of an InstructBLIP and an LLM on disk.

What flows through: one tensor at a time, from the sources' safetensors under their names to our shards under ours, so
that the memory needed is one shard and one tensor. All names and shapes are compared before anything is written.
"""

import json
import re
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from transformers import AutoConfig, AutoImageProcessor, AutoTokenizer, GenerationConfig
from transformers.dynamic_module_utils import custom_object_save

import modeling_rsmoe

from ..configuration_rsmoe import RSMoEConfig
from ..errors_rsmoe import RSMoEError
from ..inference.loading import check_tokens, safetensors_of
from ..modeling_rsmoe import RSMoEForConditionalGeneration
from ..processing_rsmoe import RSMoEProcessor
from ..utils.progress import Progress, no_progress
from .assemble import SEED, processor_arguments
from .card import CARD
from .facts import CARD_FACTS, read_facts
from .folders import check_space, check_target, reading, whole_folder
from .pretrained import add_tokens
from .records import set_provenance
from .sources import SOURCES_FILE, settings_folder


SHARD_BYTES = 2 * 10**9
LLM, ENCODER = "model.language_model.", "model.encoder."
LLM_HEAD = "lm_head.weight"
NAMES = yaml.safe_load(Path(__file__).with_name("weight_names.yaml").read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Lazy:
    """A tensor that is read or made only when it is written: its shape, and where it comes from for messages."""

    shape: tuple[int, ...]
    origin: str
    read: Callable[[], torch.Tensor]


Tensors = dict[str, Lazy]


def convert(
    name: str | Path,
    instructblip: str | Path,
    llm: str | Path | None,
    output: str | Path,
    *,
    dtype: str | None = None,
    overwrite: bool = False,
    shard_bytes: int = SHARD_BYTES,
    progress: Progress = no_progress,
) -> Path:
    """Write the start of a training: ViT, Q-Former, queries of `instructblip`; decoder, router, experts of `llm`.

    InstructBLIP's projection is taken where it has this LLM's width, else it is new, from a fixed seed. The embeddings
    of our added tokens are near the mean of the LLM's own.

    Args:
        name: a folder under hub_configs such as ``rs-moe-7b``, or a folder with config.json, generation_config.json
            and processor_config.json (and chat_template.jinja).
        instructblip: an InstructBLIP folder of transformers; or a folder of safetensors under LAVIS's names, with
            InstructBLIP's qformer_tokenizer/ beside them.
        llm: the folder of a causal LM with its tokenizer; None takes the one in `instructblip`.
        output: the folder to make.
        dtype: of the weights; by default config.json's.
        overwrite: replace `output` if it is an RS-MoE checkpoint already.
        shard_bytes: largest file of weights.
        progress: called with every step, and with how many tensors of how many are written.

    Returns:
        The folder.

    Raises:
        RSMoEError: a source of another kind, missing or unfitting weights, pickles, no space, `output` exists.
    """
    output = Path(output).expanduser().absolute()
    check_target(output, overwrite)
    progress("comparing the sources")
    settings = settings_folder(name)
    instructblip, llm = Path(instructblip).expanduser(), Path(llm or instructblip).expanduser()
    for source in (instructblip, llm):
        safetensors_of(source)
    config = RSMoEConfig.from_pretrained(settings)
    config.dtype = read_dtype(dtype or config.dtype or "float32")
    _check_config(config, instructblip, llm)
    processor, known_tokens = _processor(config, settings, instructblip, llm)
    check_tokens(config, processor)
    generation_config = _generation_config(settings, processor.tokenizer)
    with torch.device("meta"):
        model = RSMoEForConditionalGeneration(config)
    needed = {key: value for key, value in model.state_dict().items() if key not in model.all_tied_weights_keys}
    with ExitStack() as files:
        tensors = _tensors(config, instructblip, llm, known_tokens, files)
        _complete(tensors, needed, config)
        _check_fit(tensors, needed, instructblip, llm)
        check_space(sum(tensor.numel() * config.dtype.itemsize for tensor in needed.values()), output)
        with whole_folder(output, overwrite) as folder:
            _write_shards(folder, {key: tensors[key] for key in needed}, config.dtype, shard_bytes, progress)
            facts = read_facts(settings, trained=False, config=config)
            for file in (CARD, SOURCES_FILE, *(() if facts.texts.training else (CARD_FACTS,))):
                if (settings / file).is_file():
                    shutil.copyfile(settings / file, folder / file)
            _save_settings(folder, model, generation_config, processor)
            set_provenance(folder, facts.provenance)
    return output


def _save_settings(folder: Path, model: Any, *saved: Any) -> None:
    """Everything of a checkpoint but its weights, and the code that `trust_remote_code` runs."""
    modeling_rsmoe.register()  # so that the folder carries the code
    config = model.config_to_save()
    config.architectures = [type(model).__name__]
    custom_object_save(model, folder, config=config)
    for settings in (config, *saved):
        settings.save_pretrained(folder)


def _write_shards(folder: Path, tensors: Tensors, dtype: torch.dtype, shard_bytes: int, progress: Progress) -> None:
    """Write tensors as transformers' shards and their index, holding no more than one shard."""
    shapes = {key: torch.empty(lazy.shape, dtype=dtype, device="meta") for key, lazy in tensors.items()}
    split = split_torch_state_dict_into_shards(shapes, max_shard_size=shard_bytes)
    done = 0
    for filename, keys in split.filename_to_tensors.items():
        shard: dict[str, torch.Tensor] = {}
        for key in keys:
            progress("converting", done, len(tensors), "tensors")
            # A copy: what is a view into a source's file, or of another tensor, cannot be saved.
            shard[key] = tensors[key].read().to(dtype, copy=True).contiguous()
            if not torch.isfinite(shard[key]).all():
                origin = tensors[key].origin
                raise RSMoEError(f"{origin} is not finite in {dtype}; fetch it again or give another --dtype.")
            done += 1
        save_file(shard, folder / filename, metadata={"format": "pt"})
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": dict(sorted(split.tensor_to_filename.items()))}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


# ---- the sources


def _open(source: Path, files: ExitStack) -> Tensors:
    """Every tensor of a source by the name it has there; only headers are read."""
    tensors: Tensors = {}
    for path in safetensors_of(source):
        with reading(f"{path} cannot be read as safetensors"):
            file = files.enter_context(safe_open(path, framework="pt"))
            for key in file.keys():  # noqa: SIM118  # a safe_open is no mapping
                shape = tuple(file.get_slice(key).get_shape())
                tensors[key] = Lazy(shape, f"{path}: {key}", partial(file.get_tensor, key))
    return tensors


def _renamed(tensors: Tensors, names: dict[str, str]) -> Tensors:
    """Those whose name matches one of `names`, under its replacement."""
    renamed = {}
    for key, lazy in tensors.items():
        for pattern, name in names.items():
            match = re.fullmatch(pattern, key)
            if match and not key.endswith("position_ids"):  # a buffer of old versions
                renamed[match.expand(name)] = lazy
                break
    return renamed


def _with_whole_biases(tensors: Tensors) -> Tensors:
    """LAVIS's ViT has biases of q and v: in our model they are one of q, k (zeros) and v."""
    for key in [key for key in tensors if key.endswith(".q_bias")]:
        prefix = key.removesuffix(".q_bias")
        q_bias, v_bias = tensors.pop(key), tensors.pop(f"{prefix}.v_bias", None)
        if v_bias is None:
            raise RSMoEError(f"{q_bias.origin} stands alone: its v_bias is missing. Give the complete state dict.")

        def qkv_bias(q_bias: Lazy = q_bias, v_bias: Lazy = v_bias) -> torch.Tensor:
            q, v = q_bias.read(), v_bias.read()
            return torch.cat([q, torch.zeros_like(q), v])

        tensors[f"{prefix}.qkv.bias"] = Lazy((3 * q_bias.shape[0],), q_bias.origin, qkv_bias)
    return tensors


def _tensors(config: RSMoEConfig, instructblip: Path, llm: Path, known_tokens: int, files: ExitStack) -> Tensors:
    """What the sources give, under our names. `known_tokens`: how many the LLM's own tokenizer has."""
    theirs = _open(instructblip, files)
    kind = "lavis" if any(key.startswith(("Qformer.", "visual_encoder.")) for key in theirs) else "instructblip"
    tensors = _with_whole_biases(_renamed(theirs, NAMES[kind]))
    if llm == instructblip:
        tensors |= _renamed(theirs, NAMES[f"{kind}_llm"])
    else:
        tensors |= _renamed(_open(llm, files), NAMES["llm"])
    queries = tensors.get(ENCODER + "query_tokens.weight")
    if queries and len(queries.shape) == 3:  # [1, queries, width]
        read = queries.read
        tensors[ENCODER + "query_tokens.weight"] = Lazy(queries.shape[1:], queries.origin, lambda: read()[0])
    head, table = LLM_HEAD, LLM + "embed_tokens.weight"
    if config.tie_word_embeddings:
        tensors.pop(head, None)
    elif head not in tensors and table in tensors:  # a source that ties what our config does not
        tensors[head] = tensors[table]
    for key in (head, table):
        if key in tensors:
            tensors[key] = _with_added_tokens(tensors[key], known_tokens, config.text_config.vocab_size)
    return tensors


def _with_added_tokens(table: Lazy, known_tokens: int, size: int) -> Lazy:
    """[tokens, width] -> [size, width]: the LLM's own tokens without a table's padding, then those we add."""
    if table.shape[0] < known_tokens:
        problem = f"has {table.shape[0]} rows, its tokenizer {known_tokens} tokens"
        raise RSMoEError(f"{table.origin} {problem}: give files that belong together.")
    read = table.read
    return Lazy((size, *table.shape[1:]), table.origin, lambda: add_tokens(read()[:known_tokens], size))


# ---- what the model needs


def _complete(tensors: Tensors, needed: dict[str, torch.Tensor], config: RSMoEConfig) -> None:
    """Add what no source gives: router and experts at the base LM, and a projection of another width."""
    generator = torch.Generator().manual_seed(SEED)
    projection = [f"{ENCODER}projection.weight", f"{ENCODER}projection.bias"]
    if any(key not in tensors or tensors[key].shape != tuple(needed[key].shape) for key in projection):
        for key, std in zip(projection, (config.text_config.initializer_range, 0.0)):
            tensors[key] = _drawn(key, needed[key], partial(torch.Tensor.normal_, std=std, generator=generator))
    for key, value in needed.items():
        adapter = re.match(r"model\.(?:router|experts\.\w+)\.(.+)", key)
        if adapter and key.endswith("lora_A"):  # as the layer itself starts: kaiming_uniform_(a=5 ** 0.5)
            bound = value.shape[1] ** -0.5
            tensors[key] = _drawn(key, value, partial(nn.init.uniform_, a=-bound, b=bound, generator=generator))
        elif adapter and key.endswith("lora_B"):
            tensors[key] = _drawn(key, value, torch.Tensor.zero_)
        elif adapter and LLM + adapter[1] in tensors:  # of type `full`: a copy of the base LM's layer
            tensors[key] = tensors[LLM + adapter[1]]


def _drawn(key: str, like: torch.Tensor, fill: Callable[[torch.Tensor], torch.Tensor]) -> Lazy:
    return Lazy(tuple(like.shape), key, lambda: fill(torch.empty(like.shape)))


def _check_fit(tensors: Tensors, needed: dict[str, torch.Tensor], instructblip: Path, llm: Path) -> None:
    remedy = "give a complete checkpoint of the size and kind that config.json describes."
    if missing := [key for key in needed if key not in tensors]:
        source = instructblip if missing[0].startswith(ENCODER) else llm
        raise RSMoEError(f"{source} lacks {len(missing)} weights, such as {missing[0]}: {remedy}")
    for key, value in needed.items():
        shape, expected = list(tensors[key].shape), list(value.shape)
        if shape != expected:
            raise RSMoEError(f"{tensors[key].origin} has shape {shape}; {key} needs {expected}: {remedy}")
    if left := [key for key in tensors if key not in needed and key.startswith((LLM, ENCODER))]:
        count = f"{len(left)} such weights"
        raise RSMoEError(f"{tensors[left[0]].origin} has no place in the model ({count}): {remedy}")


# ---- settings


def read_dtype(name: str | torch.dtype) -> torch.dtype:
    """The floating-point type of that name; another name raises."""
    dtype = name if isinstance(name, torch.dtype) else getattr(torch, str(name), None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise RSMoEError(f"unknown dtype {name!r}: expected float32, bfloat16 or float16.")
    return dtype


def _check_config(config: RSMoEConfig, instructblip: Path, llm: Path) -> None:
    """Settings that no shape shows (heads, epsilons, rotary base) must be the sources', or outputs are wrong."""
    if (model_type := config.vision_config.model_type) != "instructblip_vision_model":
        raise RSMoEError(f"config.json says vision_config.model_type {model_type!r}; no InstructBLIP has such a ViT.")
    text_config = None if llm == instructblip else _read_config(llm, config.text_config.model_type)
    if (instructblip / "config.json").is_file():
        theirs = _read_config(instructblip, "instructblip")
        _compare(config.vision_config, theirs.vision_config, "vision_config", instructblip)
        _compare(config.qformer_config, theirs.qformer_config, "qformer_config", instructblip)
        ours, value = config.num_query_tokens, theirs.num_query_tokens
        if ours != value:
            raise RSMoEError(f"config.json says num_query_tokens {ours}; {instructblip} has {value}.")
        text_config = text_config or theirs.text_config
    if text_config is None:
        raise RSMoEError(f"{instructblip} has no config.json, so its LLM is unknown: give the LLM's own folder.")
    _compare(config.text_config, text_config, "text_config", llm)


def _read_config(folder: Path, model_type: str) -> Any:
    with reading(f"{folder / 'config.json'} cannot be read"):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    if config.model_type != model_type:
        raise RSMoEError(f"{folder} is of model type {config.model_type!r}, expected {model_type!r}.")
    return config


def _compare(ours: Any, theirs: Any, name: str, folder: Path) -> None:
    """Raise where the field `name` of our configuration differs from what `folder` has."""
    our_values, their_values = ours.to_dict(), theirs.to_dict()
    for field in sorted((our_values.keys() & their_values.keys()) - set(NAMES["not_compared"])):
        if (value := our_values[field]) != their_values[field]:
            raise RSMoEError(f"config.json says {name}.{field} {value}; {folder} has {their_values[field]}.")


def _processor(config: RSMoEConfig, settings: Path, instructblip: Path, llm: Path) -> tuple[RSMoEProcessor, int]:
    """The processor with the sources' tokenizers, and how many tokens the LLM's had before ours were added."""
    arguments = processor_arguments(settings)
    if (template := settings / "chat_template.jinja").is_file():
        arguments["chat_template"] = template.read_text(encoding="utf-8")
    folder = instructblip / "qformer_tokenizer"
    qformer_tokenizer = _tokenizer(folder)
    size, expected = len(qformer_tokenizer), config.qformer_config.vocab_size
    if size > expected:
        raise RSMoEError(f"{folder} has {size} tokens; config.json says qformer_config.vocab_size {expected}.")
    qformer_tokenizer.model_max_length = config.qformer_config.max_position_embeddings
    tokenizer = llm_tokenizer(llm, config.text_config.pad_token_id)
    known_tokens = len(tokenizer)
    has_images = any((instructblip / name).is_file() for name in ("preprocessor_config.json", "processor_config.json"))
    image_processor = AutoImageProcessor.from_pretrained(instructblip if has_images else settings, backend="pil")
    return RSMoEProcessor(image_processor, tokenizer, qformer_tokenizer, **arguments), known_tokens


def _generation_config(settings: Path, tokenizer: Any) -> GenerationConfig:
    """It must have the tokenizer's end and padding: sequences are trained with the one, generated with the other."""
    config = GenerationConfig.from_pretrained(settings)
    for name in ("eos_token_id", "pad_token_id"):
        ours, theirs = getattr(config, name), getattr(tokenizer, name)
        if ours != theirs:
            raise RSMoEError(
                f"generation_config.json says {name} {ours}; the LLM's tokenizer has {theirs}: correct it."
            )
    return config


def llm_tokenizer(folder: Path, pad_token_id: int | None) -> Any:
    """The LLM's tokenizer as our sequences need it: a text is tokenized in pieces, so nothing may be added to a piece.

    The chat template writes the first token. The padding token is the one that config.json names, which must not be
    the end token: a sequence would seem to end before it begins.

    Args:
        folder: with the tokenizer's files.
        pad_token_id: of config.json, where the tokenizer has no padding token.

    Raises:
        RSMoEError: no tokenizer, one that adds tokens to every text, or one that pads with the end token.
    """
    tokenizer = _tokenizer(folder, add_bos_token=False, add_eos_token=False, add_prefix_space=False)
    joined, first, second = (tokenizer(text)["input_ids"] for text in ("a river", "a", " river"))
    if joined != first + second:
        problem = f"adds tokens to every piece of text ({joined} is not {first} + {second})"
        raise RSMoEError(f"the tokenizer in {folder} {problem}: give one that does not, or another LLM.")
    if tokenizer.pad_token_id is None and pad_token_id is not None and 0 <= pad_token_id < len(tokenizer):
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad_token_id)
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        problem = f"pads with {tokenizer.pad_token!r} and ends with {tokenizer.eos_token!r}"
        raise RSMoEError(f"the tokenizer in {folder} {problem}: set another pad_token in its tokenizer_config.json.")
    return tokenizer


def _tokenizer(folder: Path, **arguments: Any) -> Any:
    if not folder.is_dir():
        raise RSMoEError(f"{folder} is missing: put the source's tokenizer there.")
    with reading(f"{folder} has no tokenizer that can be read", "put the files of the source's tokenizer there"):
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True, **arguments)
