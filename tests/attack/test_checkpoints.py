"""Folders of checkpoints that are damaged, odd or hostile: one line each, exit code 2, and nothing is built or run."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertTokenizer

from modeling_rsmoe import RSMoEError
from modeling_rsmoe.inference.checkpoint import load

from .conftest import NO_FILES, refusal


CONFIG, PROCESSOR, GENERATION = "config.json", "processor_config.json", "generation_config.json"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


def edit(file: str, path: str, value: Any) -> Callable[[Path], None]:
    """A setting, by its path in a file."""

    def damage(folder: Path) -> None:
        settings = json.loads((folder / file).read_text())
        *names, last = path.split(".")
        inner = settings
        for name in names:
            inner = inner[name]
        inner[last] = value
        (folder / file).write_text(json.dumps(settings))

    return damage


def replace(file: str, content: str | bytes) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / file).write_bytes(content if isinstance(content, bytes) else content.encode())

    return damage


def change_weights(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        weights = load_file(folder / WEIGHTS)
        change(weights)
        save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})

    return damage


def not_finite(name: str, value: float) -> Callable[[Path], None]:
    return change_weights(lambda weights: weights[name].view(-1)[-1:].fill_(value))


def cut(file: str, length: int) -> Callable[[Path], None]:
    return lambda folder: os.truncate(folder / file, length)


def no_file(kind: str, file: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / file).unlink(missing_ok=True)
        NO_FILES[kind](folder / file)

    return damage


def only_a_pickle(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")


def no_qformer_tokenizer(folder: Path) -> None:
    (folder / "qformer_tokenizer").rename(folder / "lost")


def large_qformer_tokenizer(folder: Path) -> None:
    tokenizer = BertTokenizer.from_pretrained(folder / "qformer_tokenizer")
    tokenizer.add_tokens([f"w{number}" for number in range(9)])
    tokenizer.save_pretrained(folder / "qformer_tokenizer")


def link_out(file: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        outside = folder.parent / "elsewhere"
        (folder / file).rename(outside)
        (folder / file).symlink_to(outside)

    return damage


def index(name: Any) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        names = list(load_file(folder / WEIGHTS))
        (folder / WEIGHTS).rename(folder.parent / "outside.safetensors")
        (folder / "a.safetensors").write_bytes(b"-")
        content = {"metadata": {}, "weight_map": dict.fromkeys(names, name)}
        (folder / INDEX).write_text(json.dumps(content))

    return damage


LORA = "model.experts.theme.layers.0.self_attn.q_proj_lora.lora_A"
HOSTILE_TEMPLATE = "{{ ''.__class__.__mro__[1].__subclasses__() }}"
CASES: dict[str, tuple[Callable[[Path], Any], str]] = {
    # settings
    "layers": (
        edit(CONFIG, "text_config.num_hidden_layers", 10**8),
        r"text_config.num_hidden_layers is 100000000, exp",
    ),
    "no heads": (edit(CONFIG, "text_config.num_attention_heads", 0), "text_config.num_attention_heads is 0, expected"),
    "vision heads": (edit(CONFIG, "vision_config.num_attention_heads", 0), "vision_config.num_attention_heads is 0,"),
    "negative": (edit(CONFIG, "qformer_config.hidden_size", -16), "qformer_config.hidden_size is -16, expected"),
    "huge": (edit(CONFIG, "text_config.vocab_size", 10**12), "text_config.vocab_size is 1000000000000, expected"),
    "huge width": (edit(CONFIG, "text_config.hidden_size", 10**7), "hidden_size is 10000000, expected"),
    "wide": (edit(CONFIG, "text_config.hidden_size", 60_000), "cannot be loaded"),
    "word": (edit(CONFIG, "text_config.hidden_size", "big"), "text_config.hidden_size is 'big', expected"),
    "list": (edit(CONFIG, "text_config", [1]), "cannot be loaded"),
    "none": (edit(CONFIG, "vision_config", "dinov2"), "cannot be loaded"),
    "text": (edit(CONFIG, "expert_names", "theme"), "expert_names"),
    "names": (edit(CONFIG, "expert_names", [1, 2, 3]), "expert_names"),
    "nan": (edit(CONFIG, "expert_config.lora_alpha", float("nan")), "expert_config.lora_alpha is nan, expected a fin"),
    "infinity": (edit(CONFIG, "text_config.rms_norm_eps", 1e999), "text_config.rms_norm_eps is inf, expected"),
    "unknown model": (edit(CONFIG, "text_config.model_type", "no-such"), "cannot be loaded .*no-such"),
    "encoder": (edit(CONFIG, "text_config.model_type", "t5"), "cannot be loaded|is an encoder-decoder"),
    "activation": (edit(CONFIG, "text_config.hidden_act", "os.system"), "cannot be loaded"),
    "odd heads": (edit(CONFIG, "text_config.num_attention_heads", 5), "cannot be loaded"),
    "kernel": (edit(CONFIG, "text_config.attn_implementation", "someone/kernel"), "attn_implementation is 'someone/"),
    "token": (edit(CONFIG, "image_token_id", 264), "image_token_id"),
    "other tokens": (edit(CONFIG, "expert_token_ids", [0, 1, 2]), "the tokenizer gives .* the ids"),
    "no object": (replace(CONFIG, "[1]"), "is a checkpoint of model type None"),
    "no JSON": (replace(CONFIG, b"\xff\xfe\x00"), "config.json cannot be read"),
    "deep": (replace(CONFIG, "[" * 100_000), "config.json cannot be read"),
    "empty": (replace(CONFIG, ""), "config.json is empty"),
    "beams": (edit(GENERATION, "num_beams", -3), "num_beams is -3, expected a whole number from 1"),
    "many beams": (edit(GENERATION, "num_beams", 10**6), "num_beams is 1000000, expected"),
    "tokens": (edit(GENERATION, "max_new_tokens", 10**12), "max_new_tokens is 1000000000000"),
    "temperature": (edit(GENERATION, "temperature", float("nan")), "temperature is nan"),
    "generation": (replace(GENERATION, "{"), "generation_config.json cannot be read"),
    "image size": (
        edit(PROCESSOR, "image_processor.size.height", 100_000),
        "size.height is 100000, expected .* 4,096",
    ),
    "no size": (edit(PROCESSOR, "image_processor.size", {}), "cannot be loaded|size"),
    "mean": (edit(PROCESSOR, "image_processor.image_mean", "gray"), "cannot be loaded|image_mean"),
    "queries": (edit(PROCESSOR, "num_query_tokens", 7), "num_query_tokens 7, config.json 4"),
    "processor": (replace(PROCESSOR, "null"), "cannot be loaded"),
    "template": (replace("chat_template.jinja", HOSTILE_TEMPLATE), "the processor of .*cannot be loaded .*unsafe"),
    "broken template": (replace("chat_template.jinja", "{% for %}"), "the processor of .*cannot be loaded"),
    "tokenizer": (replace("tokenizer.json", "{}"), "the processor of .*cannot be loaded"),
    "no Q-Former tokenizer": (no_qformer_tokenizer, "the Q-Former's tokenizer is the LLM's"),
    "large Q-Former tokenizer": (
        large_qformer_tokenizer,
        "qformer_tokenizer has 70 tokens; config.json says .* 64",
    ),
    # weights
    "only a pickle": (only_a_pickle, "pytorch_model.bin is a pickle, which can run any code, so it is not opened"),
    "no weights": (lambda folder: (folder / WEIGHTS).unlink(), r"has no \*.safetensors"),
    "cut header": (cut(WEIGHTS, 100), "cannot be loaded"),
    "cut": (cut(WEIGHTS, 50_000), "cannot be loaded"),
    "no bytes": (cut(WEIGHTS, 0), "model.safetensors is empty"),
    "header": (replace(WEIGHTS, b"\xff" * 64), "cannot be loaded"),
    "text in place of weights": (
        replace(WEIGHTS, "version https://git-lfs.github.com/spec/v1\n" * 3),
        "cannot be load",
    ),
    "lost": (change_weights(lambda weights: weights.pop(LORA)), f"lacks 1 weights, such as {LORA}"),
    "shape": (change_weights(lambda weights: weights.update({LORA: torch.zeros(3, 3)})), "cannot be loaded"),
    "nan weight": (not_finite(LORA, float("nan")), rf"{LORA} is not finite in torch.float32"),
    "infinite weight": (
        not_finite("model.encoder.query_tokens.weight", float("inf")),
        "query_tokens.weight is not fin",
    ),
    # places
    "index outside": (index("../outside.safetensors"), "names weights in '../outside.safetensors'"),
    "index to a device": (index("/dev/zero"), "names weights in '/dev/zero'"),
    "index of numbers": (index(7), "names weights in 7"),
    "index to nothing": (index("b.safetensors"), "there is no file .*b.safetensors"),
    "no index": (lambda folder: (index("a")(folder), replace(INDEX, "[]")(folder)), "is no index of weights"),
    "link out": (link_out(WEIGHTS), "model.safetensors is a link to .*elsewhere, outside the checkpoint"),
    "link out of the tokenizer": (link_out("qformer_tokenizer/tokenizer.json"), "is a link to .*elsewhere"),
    "adapter": (
        replace("adapter_config.json", '{"base_model_name_or_path": "someone/else"}'),
        "adapter_config.json would have weights loaded from elsewhere",
    ),
    **{
        f"{kind} {file}": (no_file(kind, file), f"{file} is (a folder|not a regular file)")
        for kind in NO_FILES
        for file in (CONFIG, WEIGHTS, GENERATION, "tokenizer.json", "chat_template.jinja", "vocab.txt")
    },
}


@pytest.mark.parametrize("name", CASES)
def test_a_caption(name: str, damaged: Path, image: Path) -> None:
    damage, told = CASES[name]
    damage(damaged)
    line = refusal("caption", image, "--model", damaged)
    assert re.search(told, line), line


@pytest.mark.parametrize("door", ["evaluate", "collection", "encode", "quantize", "stage2"])
def test_every_door_looks_at_the_weights(door: str, damaged: Path, data: Path, tmp_path: Path) -> None:
    """One number of one tensor; nothing is written."""
    not_finite("model.encoder.query_tokens.weight", float("nan"))(damaged)
    settings, output = tmp_path / "training.yaml", tmp_path / "out.parquet"
    settings.write_text("stage2: {max_steps: 1, one_stage: true, question_share: 0}")
    words = {
        "evaluate": ("evaluate", damaged, "--data", data, "--output", tmp_path / "report.json"),
        "collection": ("caption", data, "--model", damaged, "--output", output),
        "encode": ("encode", data, "--model", damaged, "--output", output),
        "quantize": ("quantize", damaged, "--dtype", "float16", "--output", tmp_path / "half"),
        "stage2": ("train", "stage2", "--config", settings, "--data", data, "--model", damaged, "--output", output),
    }[door]
    assert "query_tokens.weight is not finite in torch.float32 (nan or infinity)" in refusal(*words)
    assert not output.is_file() and not (tmp_path / "report.json").exists() and not (tmp_path / "half").exists()


def test_one_shard_beside_its_index(damaged: Path) -> None:
    (damaged / WEIGHTS).rename(damaged / "a.safetensors")
    names = list(load_file(damaged / "a.safetensors"))
    (damaged / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(names, "a.safetensors")}))
    assert load(str(damaged)).folder == damaged


def test_links_as_the_hub_lays_them_out(checkpoint: Path, tmp_path: Path) -> None:
    """snapshots/COMMIT/FILE is a link to ../../blobs/HASH; any other link out of a snapshot is refused."""
    root = tmp_path / "models--owner--tiny"
    snapshot, blobs = root / "snapshots" / ("a" * 40), root / "blobs"
    for number, file in enumerate(sorted(path for path in checkpoint.rglob("*") if path.is_file())):
        place = snapshot / file.relative_to(checkpoint)
        place.parent.mkdir(parents=True, exist_ok=True)
        blobs.mkdir(exist_ok=True)
        (blobs / str(number)).write_bytes(file.read_bytes())
        place.symlink_to(os.path.relpath(blobs / str(number), place.parent))
    assert load(str(snapshot)).revision() == "a" * 40
    (snapshot / GENERATION).unlink()
    (snapshot / GENERATION).symlink_to(checkpoint / GENERATION)
    with pytest.raises(RSMoEError, match="generation_config.json is a link to .*, outside the checkpoint"):
        load(str(snapshot))
