"""Router and experts in other libraries' folders: PEFT adapters both ways, plain LLMs, a bundle for vLLM.

Knows names, shapes and scalings of low-rank weights; an adapter that cannot be held exactly is refused.
"""

import re
import shlex
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from ..errors_rsmoe import RSMoEError
from ..experts_rsmoe import LowRank, RSMoEExpert
from ..modeling_rsmoe import RSMoEForConditionalGeneration
from ..processing_rsmoe import RSMoEProcessor
from .folders import reading, whole_folder
from .records import copy_records


ROUTER = "router"
WEIGHTS, SETTINGS = "adapter_model.safetensors", "adapter_config.json"
PREFIX = "base_model.model.model."  # of a decoder's weights inside a PeftModel of its causal LM
KEY = re.compile(r"base_model\.model\.(?:model\.)?(layers\..+)\.lora_([AB])\.weight")
# Settings by which an adapter is more than low-rank products of linear layers, where they are not LoraConfig's
# default.
BEYOND_LOW_RANK = [
    "bias",
    "use_dora",
    "modules_to_save",
    "rank_pattern",
    "alpha_pattern",
    "fan_in_fan_out",
    "lora_bias",
]
BEYOND_LOW_RANK += ["trainable_token_indices", "target_parameters", "alora_invocation_tokens", "layer_replication"]
VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # that --max-lora-rank takes
CLIENT = Path(__file__).with_name("vllm_client.py")


def adapters_of(model: RSMoEForConditionalGeneration) -> dict[str, RSMoEExpert]:
    """The router and every expert, by name."""
    experts = {name: model.model.expert(name) for name in model.config.expert_names}
    return {ROUTER: model.model.router, **experts}


def adapter_of(model: RSMoEForConditionalGeneration, name: str) -> RSMoEExpert:
    """The expert `name`, or the router; an unknown name raises with the known ones."""
    adapters = adapters_of(model)
    if name not in adapters:
        raise RSMoEError(f"Unknown expert {name!r}; this model has {', '.join(adapters)}.")
    return adapters[name]


def save_peft(model: RSMoEForConditionalGeneration, name: str, folder: str | Path, base: str | None = None) -> None:
    """Write the router or an expert as a PEFT adapter of the base LM (`model.plain_llm()`).

    Args:
        model: that it is taken from.
        name: of an expert, or "router".
        folder: to write.
        base: where that LLM is to be found, for `AutoPeftModel`.

    Raises:
        RSMoEError: an unknown name, or an expert of type `full`, which is not low-rank.
    """
    adapter, folder = adapter_of(model, name), Path(folder)
    if adapter.config.expert_type != "lora":
        raise RSMoEError(f"{name} is of type {adapter.config.expert_type!r}, not low-rank: export it as a plain LLM.")
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=adapter.config.r,
        lora_alpha=adapter.config.lora_alpha,  # type: ignore[arg-type]  # PEFT only divides by r
        target_modules=list(adapter.config.target_modules),
        inference_mode=True,
        base_model_name_or_path=base,
    )
    folder.mkdir(parents=True, exist_ok=True)
    weights = {
        f"{PREFIX}{layer}.{name}.weight": value.detach().contiguous()
        for layer, pair in adapter.named_pairs()
        for name, value in pair.named_parameters()
    }
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    config.save_pretrained(str(folder))


@torch.no_grad()
def load_peft(model: RSMoEForConditionalGeneration, name: str, folder: str | Path) -> None:
    """Put a PEFT LoRA adapter into the router or an expert, in place, without any loss.

    A lower rank is filled up with directions of zero effect, another scaling goes into the weights, layers that the
    PEFT adapter does not have stay the base LM's. For a new expert, call `add_expert` of processor and model first.

    Args:
        model: that it is put into.
        name: of an expert, or "router".
        folder: with adapter_config.json and adapter_model.safetensors.

    Raises:
        RSMoEError: no LoRA adapter, one of a higher rank, of other layers or shapes, one that changes more than linear
            layers, or values that are not finite. Then nothing is changed.
    """
    adapter, folder = adapter_of(model, name), Path(folder)
    if (expert_type := adapter.config.expert_type) != "lora":
        raise RSMoEError(f"{name} is of type {expert_type!r}; a PEFT adapter goes into experts of type 'lora'.")
    config, weights = _read_adapter(folder)
    if config.r > adapter.config.r:
        raise RSMoEError(f"{folder} has rank {config.r}; this model's experts have {adapter.config.r}.")
    pairs = _pairs(adapter, config.r, weights, folder)
    scaling = config.lora_alpha / (config.r**0.5 if config.use_rslora else config.r)
    adapter.reset_to(model.model.language_model)
    for low_rank, pair in pairs.items():
        low_rank.lora_A[: config.r] = pair["A"].to(low_rank.lora_A)
        low_rank.lora_B[:, : config.r] = (pair["B"].float() * (scaling / adapter.scaling)).to(low_rank.lora_B)


def save_llm(
    model: RSMoEForConditionalGeneration, processor: RSMoEProcessor, name: str | None, folder: str | Path
) -> None:
    """Write the base LM, or the router or an expert merged into it, as a plain causal LM with its tokenizer."""
    llm = model.plain_llm()
    if name is not None:
        adapter_of(model, name).merge_into(cast(PreTrainedModel, llm.base_model))
    llm.save_pretrained(folder)
    processor.llm_tokenizer().save_pretrained(folder)


@contextmanager
def _exported(output: Path, start: Path | None) -> Iterator[Path]:
    """A new folder; `output`/origin has card, sources and records of the checkpoint in `start`."""
    with whole_folder(output) as folder:
        yield folder
        if start is not None:
            copy_records(start, folder / "origin")


def export_peft(
    model: RSMoEForConditionalGeneration, processor: RSMoEProcessor, output: Path, start: Path | None = None
) -> list[str]:
    """`output`/base: the base LM; `output`/NAME: router and experts as adapters of it. Returns the folders.

    With `start`, the folder of the checkpoint, `output`/origin gets its card, sources and records of training.
    """
    with _exported(output, start) as folder:
        for name in adapters_of(model):
            save_peft(model, name, folder / name, base=str(output / "base"))
        save_llm(model, processor, None, folder / "base")
    return [str(output / name) for name in ("base", *adapters_of(model))]


def export_llm(
    model: RSMoEForConditionalGeneration, processor: RSMoEProcessor, output: Path, start: Path | None = None
) -> list[str]:
    """`output`/NAME: router and each expert as a plain LLM of its own. Returns the folders; `start`: as above."""
    with _exported(output, start) as folder:
        for name in adapters_of(model):
            save_llm(model, processor, name, folder / name)
    return [str(output / name) for name in adapters_of(model)]


def export_vllm(
    model: RSMoEForConditionalGeneration, processor: RSMoEProcessor, output: Path, start: Path | None = None
) -> str:
    """What a server of one LLM and many adapters needs, and what makes its inputs of images and texts.

    `output`/base and `output`/adapters/NAME for the server; `output`/encoder, `output`/processor and
    `output`/vllm_client.py for the client, which puts the image's features before the text's embeddings. `start` as of
    `export_peft`.

    Returns:
        The line that starts the server; it stands in `output`/serve.sh too.
    """
    adapters = adapters_of(model)
    line = serve_line(output, {name: adapter.config.r for name, adapter in adapters.items()})
    with _exported(output, start) as folder:
        for name in adapters:
            save_peft(model, name, folder / "adapters" / name, base=str(output / "base"))
        save_llm(model, processor, None, folder / "base")
        model.model.encoder.save_pretrained(folder / "encoder")
        processor.save_pretrained(folder / "processor")
        shutil.copyfile(CLIENT, folder / CLIENT.name)
        (folder / "serve.sh").write_text(f"#!/bin/sh\n{line}\n", encoding="utf-8")
    return line


def serve_line(folder: Path, ranks: dict[str, int]) -> str:
    """`vllm serve` with one adapter for each of `ranks`, served as a model of that name beside `base`."""
    highest = max(ranks.values())
    allowed = next((rank for rank in VLLM_RANKS if rank >= highest), None)
    if allowed is None:
        raise RSMoEError(f"rank {highest} is more than vLLM takes ({VLLM_RANKS[-1]}): export plain LLMs.")
    modules = [f"{name}={folder / 'adapters' / name}" for name in ranks]
    server = ["vllm", "serve", str(folder / "base"), "--served-model-name", "base", "--enable-prompt-embeds"]
    lora = ["--enable-lora", "--max-lora-rank", str(allowed), "--max-loras", str(len(ranks)), "--lora-modules"]
    return shlex.join([*server, *lora, *modules])


def _read_adapter(folder: Path) -> tuple[LoraConfig, dict[str, torch.Tensor]]:
    if not (folder / SETTINGS).is_file():
        raise RSMoEError(f"{folder} has no {SETTINGS}: give the folder of a PEFT adapter.")
    if not (folder / WEIGHTS).is_file():
        raise RSMoEError(f"{folder} has no {WEIGHTS}; pickles (adapter_model.bin) are not opened: save it anew.")
    with reading(f"{folder} cannot be read as a LoRA adapter", "save it anew"):
        config, weights = cast(LoraConfig, LoraConfig.from_pretrained(str(folder))), load_file(folder / WEIGHTS)
    if str(config.peft_type).rpartition(".")[2] != "LORA":
        raise RSMoEError(f"{folder} is an adapter of kind {config.peft_type}; only LORA can be an expert.")
    for field in BEYOND_LOW_RANK:
        value = getattr(config, field, None)
        if value and value != getattr(LoraConfig, field, None):
            raise RSMoEError(f"{folder}: {field} is {value!r}; an expert is low-rank weights of linear layers only.")
    return config, weights


def _pairs(
    adapter: RSMoEExpert, rank: int, weights: dict[str, torch.Tensor], folder: Path
) -> dict[LowRank, dict[str, torch.Tensor]]:
    """The weights of a PEFT adapter by the low-rank layer of ours that they go into, all of them checked."""
    layers = dict(adapter.named_pairs())
    pairs: dict[LowRank, dict[str, torch.Tensor]] = {}
    for key, value in weights.items():
        match = KEY.fullmatch(key)
        if match is None or match[1] not in layers:
            targets = ", ".join(adapter.config.target_modules)
            raise RSMoEError(f"{folder}: {key} is of no layer that this model's experts change ({targets}).")
        if not torch.isfinite(value).all():
            raise RSMoEError(f"{folder}: {key} is not finite; that expert would spoil every sequence of a batch.")
        low_rank, side = layers[match[1]], match[2]
        shape = (rank, low_rank.lora_A.shape[1]) if side == "A" else (low_rank.lora_B.shape[0], rank)
        if tuple(value.shape) != shape:
            raise RSMoEError(f"{folder}: {key} has shape {list(value.shape)}; this model needs {list(shape)}.")
        pairs.setdefault(low_rank, {})[side] = value
    if not pairs or any(pair.keys() != {"A", "B"} for pair in pairs.values()):
        raise RSMoEError(f"{folder / WEIGHTS} lacks weights: each layer needs its lora_A and its lora_B.")
    return pairs
