"""Numbers that no option can have, at every command and in Python: one line, exit code 2."""

from pathlib import Path

import pytest
import yaml

from modeling_rsmoe import RSMoEError
from modeling_rsmoe.inference import GenerationSettings

from .conftest import refusal


GENERATION = [("--num-beams", -3), ("--num-beams", 0), ("--num-beams", 10**6), ("--num-beams", "nan")]
GENERATION += [("--max-new-tokens", -1), ("--max-new-tokens", 10**12), ("--batch-size", 0)]
SCENES = [("--tile", -3), ("--overlap", -1), ("--overlap", 10**9), ("--bands", "-1"), ("--bands", "0,0")]
OPTIONS = {
    "caption": [*GENERATION, *SCENES, ("--workers", 0)],
    "ask": [*GENERATION, *SCENES],
    "encode": [("--batch-size", 0), ("--workers", -1)],
    "evaluate": [*GENERATION, ("--limit", -1)],
    "estimate": [("--processes", 0), ("--tokens", 0)],
    "reranker": [("--rank", 0), ("--rank", 10**9), ("--buckets", -1)],
}


@pytest.mark.parametrize(
    "command, option, value", [(command, *option) for command, options in OPTIONS.items() for option in options]
)
def test_a_command(
    command: str, option: str, value: object, checkpoint: Path, image: Path, data: Path, tmp_path: Path
):
    model, parquet = ("--model", checkpoint), ("--output", tmp_path / "out.parquet")
    words = {
        "caption": ("caption", image, *model),
        "ask": ("ask", image, "Is there a road?", *model),
        "encode": ("encode", image, *model, *parquet),
        "evaluate": ("evaluate", checkpoint, "--data", data, "--output", tmp_path / "report.json"),
        "estimate": ("train", "estimate", "rs-moe-nano"),
        "reranker": ("train", "reranker", "--data", data, *model, "--output", tmp_path / "reranked"),
    }[command]
    told = refusal(*words, option, value)
    assert option.lstrip("-").replace("-", "_") in told.replace("-", "_") or str(value) in told, told


TRAINING = [("num_train_epochs", "-1"), ("num_train_epochs", "nan"), ("learning_rate", "nan")]
TRAINING += [("learning_rate", "-1"), ("per_device_train_batch_size", "0"), ("per_device_train_batch_size", "-2")]
TRAINING += [("gradient_accumulation_steps", "0"), ("save_steps", "0"), ("save_steps", "-1"), ("logging_steps", "0")]
TRAINING += [("max_grad_norm", "nan"), ("weight_decay", "nan"), ("warmup_steps", "nan"), ("seed", "-1")]
TRAINING += [("lora_r", "0"), ("lora_alpha", "nan"), ("router_share", "nan"), ("save_total_limit", "-1")]


@pytest.mark.parametrize("name, value", TRAINING)
def test_a_training(name: str, value: str, checkpoint: Path, data: Path, tmp_path: Path) -> None:
    settings = tmp_path / "training.yaml"
    values = {"max_steps": 1, "one_stage": True, "question_share": 0, "per_device_train_batch_size": 2}
    settings.write_text(yaml.safe_dump({"stage2": {key: v for key, v in values.items() if key != name}}))
    command = ("train", "stage2", "--config", settings, "--data", data, "--model", checkpoint)
    told = refusal(*command, "--output", tmp_path / "run", f"--{name}", value)
    assert name in told, told
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.parametrize("name, value", [("num_beams", -3), ("num_beams", 2.5), ("max_new_tokens", 0)])
def test_python(name: str, value: object) -> None:
    with pytest.raises(RSMoEError, match=f"{name} is {value!r}"):
        GenerationSettings(**{name: value})
