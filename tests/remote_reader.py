"""Loads a checkpoint folder by its own code only; test_remote_code.py runs this file in a fresh process.

`python -I remote_reader.py FOLDER WORK`: FOLDER is a checkpoint. WORK holds parts/ with one folder for each part saved
alone, inputs.safetensors with the rows to run, and tile.png. Writes WORK/out/*.safetensors and WORK/found.json: what
each step found, or its traceback.
"""

import importlib
import json
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import torch
import transformers.pipelines.any_to_any
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
    AutoProcessor,
    logging,
    pipeline,
)
from transformers.utils import is_torchvision_available


class PackageBlocker:
    """Finder in front of all others: this package is absent here, however it was installed (also in editable mode)."""

    def find_spec(self, name: str, path=None, target=None):
        if name.split(".")[0] == "modeling_rsmoe":
            raise ModuleNotFoundError(f"No module named {name!r} (blocked)", name=name)
        return None


REMOTE = {"trust_remote_code": True}
TEXT = "What is this?"
CHAT_TEXT = "Describe the scene."


def package_is_absent(folder: Path, work: Path) -> dict:
    try:
        importlib.import_module("modeling_rsmoe")
    except ModuleNotFoundError as error:
        return {"error": str(error)}
    return {"error": None}


def config(folder: Path, work: Path) -> dict:
    found = AutoConfig.from_pretrained(folder, **REMOTE)
    return {"module": type(found).__module__, "config": found.to_dict()}


def base_model(folder: Path, work: Path) -> dict:
    model = AutoModel.from_pretrained(folder, **REMOTE).eval()
    with torch.no_grad():
        hidden = model(**load_file(work / "inputs.safetensors")).last_hidden_state
    save_file({"hidden": hidden}, work / "out" / "base_model.safetensors")
    return {"class": type(model).__name__, "module": type(model).__module__}


def run_model(folder: Path, work: Path, name: str) -> dict:
    """Logits of plain rows, and the whole path of generate on what the folder's processor makes of an image."""
    model = AutoModelForImageTextToText.from_pretrained(folder, **REMOTE).eval()
    processor = AutoProcessor.from_pretrained(folder, **REMOTE)
    with torch.no_grad():
        logits = model(**load_file(work / "inputs.safetensors")).logits
    inputs = processor(images=Image.open(work / "tile.png"), text=TEXT, return_tensors="pt")
    outputs = model.generate(**inputs, return_dict_in_generate=True)
    tensors = {f"input.{key}": value for key, value in inputs.items()}
    tensors |= {key: outputs[key] for key in ("sequences", "router_prompts", "expert_sequences")}
    save_file({"logits": logits, **tensors}, work / "out" / f"{name}.safetensors")
    return {
        "class": type(model).__name__,
        "module": type(model).__module__,
        "processor": type(processor).__name__,
        "texts": processor.post_process_generation(outputs),
    }


def whole_model(folder: Path, work: Path) -> dict:
    return run_model(folder, work, "whole_model")


def through_pipeline(folder: Path, work: Path) -> dict:
    task = pipeline("image-text-to-text", model=str(folder), **REMOTE)
    tile = Image.open(work / "tile.png").convert("RGB")
    content = [{"type": "image", "image": tile}, {"type": "text", "text": CHAT_TEXT}]
    return {
        "with_marks": task(images=[tile], text=["<image> " + TEXT], return_full_text=False)[0]["generated_text"],
        "with_chat": task(text=[{"role": "user", "content": content}], return_full_text=False)[0]["generated_text"],
    }


def any_to_any(folder: Path, work: Path) -> dict:
    """It asks for torchvision, which our images do not need: without one, the question is passed over."""
    if not is_torchvision_available():
        transformers.pipelines.any_to_any.requires_backends = lambda *_: None
    task = pipeline("any-to-any", model=str(folder), **REMOTE)
    tile = Image.open(work / "tile.png").convert("RGB")
    content = [{"type": "image", "image": tile}, {"type": "text", "text": CHAT_TEXT}]
    return {
        "with_chat": task(text=[{"role": "user", "content": content}], return_full_text=False)[0]["generated_text"]
    }


def saved_again(folder: Path, work: Path) -> dict:
    again = work / "again"
    AutoModelForImageTextToText.from_pretrained(folder, **REMOTE).save_pretrained(again)
    AutoProcessor.from_pretrained(folder, **REMOTE).save_pretrained(again)
    return {"files": sorted(path.name for path in again.iterdir()), **run_model(again, work, "saved_again")}


def saved_sharded(folder: Path, work: Path) -> dict:
    shards = work / "shards"
    AutoModelForImageTextToText.from_pretrained(folder, **REMOTE).save_pretrained(shards, max_shard_size="40KB")
    AutoProcessor.from_pretrained(folder, **REMOTE).save_pretrained(shards)
    return {"shards": len(list(shards.glob("model-*.safetensors"))), **run_model(shards, work, "saved_sharded")}


def part(name: str) -> Callable[[Path, Path], dict]:
    """Returns the step that loads the part `name`, saved alone."""

    def step(folder: Path, work: Path) -> dict:
        model = AutoModel.from_pretrained(work / "parts" / name, **REMOTE)
        state = {key: tensor.contiguous() for key, tensor in model.state_dict().items()}
        save_file(state, work / "out" / f"part_{name}.safetensors")
        return {"class": type(model).__name__, "module": type(model).__module__}

    return step


STEPS = {step.__name__: step for step in (package_is_absent, config, base_model, whole_model, through_pipeline)}
STEPS |= {"any_to_any": any_to_any, "saved_again": saved_again, "saved_sharded": saved_sharded}


def main(folder: Path, work: Path) -> None:
    logging.set_verbosity_error()
    (work / "out").mkdir()
    found = {}
    parts = {f"part_{path.name}": part(path.name) for path in sorted((work / "parts").iterdir())}
    for name, step in {**STEPS, **parts}.items():
        try:
            found[name] = step(folder, work)
        except Exception:
            found[name] = {"traceback": traceback.format_exc()}
    (work / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    # Here, not at import: the tests import this file's names, and they do need the package.
    sys.meta_path.insert(0, PackageBlocker())
    main(Path(sys.argv[1]), Path(sys.argv[2]))
