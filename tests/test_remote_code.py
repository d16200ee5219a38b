"""A saved folder works by the code it carries: in a fresh process with empty caches, where this package is absent."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForImageTextToText, AutoProcessor, pipeline, set_seed

from modeling_rsmoe import (
    RSMoEConfig,
    RSMoEExpert,
    RSMoEForConditionalGeneration,
    RSMoEInstructionRouter,
    RSMoEModel,
    RSMoEProcessor,
    RSMoEVisionLanguageEncoder,
)

from .remote_reader import CHAT_TEXT, TEXT
from .tiny import tiny_config


pytestmark = pytest.mark.slow


READER = Path(__file__).with_name("remote_reader.py")
PARTS = {
    "encoder": RSMoEVisionLanguageEncoder,
    "router": RSMoEInstructionRouter,
    "theme": RSMoEExpert,
}


def part_of(model: RSMoEForConditionalGeneration, name: str) -> torch.nn.Module:
    return model.model.experts[name] if name == "theme" else getattr(model.model, name)


def make_rows(config: RSMoEConfig) -> dict[str, torch.Tensor]:
    """Four rows with an image each: no expert, the router, two experts."""
    set_seed(1)
    words = torch.randint(3, 250, (4, 6))
    marks = [config.image_token_id] * config.num_query_tokens
    readers = [9, config.router_token_id, *config.expert_token_ids[:2]]
    side = config.vision_config.image_size
    return {
        "input_ids": torch.cat([torch.tensor([[*marks, reader] for reader in readers]), words], 1),
        "attention_mask": torch.ones(4, words.shape[1] + len(marks) + 1, dtype=torch.long),
        "pixel_values": torch.randn(4, 3, side, side),
        "qformer_input_ids": torch.randint(5, 30, (4, 3)),
        "qformer_attention_mask": torch.ones(4, 3, dtype=torch.long),
    }


@pytest.fixture(scope="module")
def folder(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose name is no Python identifier, as many a folder's."""
    return Path(shutil.copytree(checkpoint, tmp_path_factory.mktemp("saved") / "rs-moe.tiny 1"))


@pytest.fixture(scope="module")
def work(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the fresh process read from and wrote to, after it ended."""
    work = tmp_path_factory.mktemp("remote")
    model = RSMoEForConditionalGeneration.from_pretrained(folder)
    save_file(make_rows(model.config), work / "inputs.safetensors")
    pixels = torch.randint(256, (30, 40, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    Image.fromarray(pixels.numpy()).save(work / "tile.png")
    for name in PARTS:
        part_of(model, name).save_pretrained(work / "parts" / name)
    hidden = ("HF_HOME", "HF_MODULES_CACHE", "HF_HUB_CACHE", "PYTHONPATH", "TRANSFORMERS_CACHE")
    environment = {key: value for key, value in os.environ.items() if key not in hidden}
    environment |= {"HF_HOME": str(work / "home"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    # -I: neither the current folder, nor the script's, nor PYTHONPATH; remote_reader blocks an installed package.
    done = subprocess.run(
        [sys.executable, "-I", str(READER), str(folder), str(work)],
        cwd=work,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stderr
    return work


@pytest.fixture(scope="module")
def found(work: Path) -> dict:
    return json.loads((work / "found.json").read_text())


@pytest.fixture(scope="module")
def expected(folder: Path, work: Path) -> dict:
    """The same runs in this process, with the package's own classes."""
    model = RSMoEForConditionalGeneration.from_pretrained(folder).eval()
    processor = RSMoEProcessor.from_pretrained(folder)
    rows = load_file(work / "inputs.safetensors")
    inputs = processor(images=Image.open(work / "tile.png"), text=TEXT, return_tensors="pt")
    outputs = model.generate(**inputs, return_dict_in_generate=True)
    with torch.no_grad():
        hidden, logits = model.model(**rows).last_hidden_state, model(**rows).logits
    tensors = {f"input.{key}": value for key, value in inputs.items()}
    tensors |= {key: outputs[key] for key in ("sequences", "router_prompts", "expert_sequences")}
    texts = processor.post_process_generation(outputs)
    return {"hidden": hidden, "tensors": {"logits": logits, **tensors}, "texts": texts, "model": model}


def check_run(step: dict, tensors: dict[str, torch.Tensor], expected: dict) -> None:
    """Same classes by name, same processor outputs, same tokens and texts, equal logits."""
    assert (step["class"], step["processor"]) == ("RSMoEForConditionalGeneration", "RSMoEProcessor")
    assert step["module"].startswith("transformers_modules.")
    assert tensors.keys() == expected["tensors"].keys()
    for name, tensor in expected["tensors"].items():
        assert torch.equal(tensors[name], tensor), name
    assert step["texts"] == expected["texts"]


def test_every_step_ran(found: dict):
    failed = {name: step["traceback"] for name, step in found.items() if "traceback" in step}
    assert not failed, "\n".join(failed.values())


def test_package_is_not_importable_there(found: dict):
    assert found["package_is_absent"]["error"] == "No module named 'modeling_rsmoe' (blocked)"


def test_config(folder: Path, found: dict):
    assert found["config"]["module"].startswith("transformers_modules.")
    ours = json.loads(json.dumps(RSMoEConfig.from_pretrained(folder).to_dict()))
    assert {**found["config"]["config"], "_name_or_path": ""} == {**ours, "_name_or_path": ""}


def test_base_model(work: Path, found: dict, expected: dict):
    assert found["base_model"]["class"] == "RSMoEModel"
    assert found["base_model"]["module"].startswith("transformers_modules.")
    assert torch.equal(load_file(work / "out" / "base_model.safetensors")["hidden"], expected["hidden"])


def test_whole_model_and_processor(work: Path, found: dict, expected: dict):
    assert expected["texts"][0]["expert_texts"]["theme"]  # an empty text would equal any other
    check_run(found["whole_model"], load_file(work / "out" / "whole_model.safetensors"), expected)


def test_pipeline(folder: Path, work: Path, found: dict):
    task = pipeline("image-text-to-text", model=str(folder))  # without trust_remote_code: the installed classes
    assert type(task.model) is RSMoEForConditionalGeneration
    tile = Image.open(work / "tile.png").convert("RGB")
    content = [{"type": "image", "image": tile}, {"type": "text", "text": CHAT_TEXT}]
    ours = {
        "with_marks": task(images=[tile], text=["<image> " + TEXT], return_full_text=False)[0]["generated_text"],
        "with_chat": task(text=[{"role": "user", "content": content}], return_full_text=False)[0]["generated_text"],
    }
    assert all(ours.values())
    assert found["through_pipeline"] == ours
    assert found["any_to_any"] == {"with_chat": ours["with_chat"]}


def test_saved_again(folder: Path, work: Path, found: dict, expected: dict):
    assert found["saved_again"]["files"] == sorted(path.name for path in folder.iterdir())
    check_run(found["saved_again"], load_file(work / "out" / "saved_again.safetensors"), expected)


def test_saved_sharded(work: Path, found: dict, expected: dict):
    assert found["saved_sharded"]["shards"] > 1
    check_run(found["saved_sharded"], load_file(work / "out" / "saved_sharded.safetensors"), expected)


@pytest.mark.parametrize("name", PARTS)
def test_part_alone_by_its_own_code(work: Path, found: dict, expected: dict, name: str):
    step = found[f"part_{name}"]
    assert (step["class"], step["module"].split(".")[0]) == (PARTS[name].__name__, "transformers_modules")
    remote = load_file(work / "out" / f"part_{name}.safetensors")
    ours = part_of(expected["model"], name).state_dict()
    assert remote.keys() == ours.keys()
    assert all(torch.equal(remote[key], ours[key]) for key in ours)


@pytest.mark.parametrize("name", PARTS)
def test_part_alone_with_the_package(work: Path, expected: dict, name: str):
    for loader in (PARTS[name], AutoModel):
        part, report = loader.from_pretrained(work / "parts" / name, output_loading_info=True)
        assert type(part) is PARTS[name]
        assert not any(report.values()), report
        ours = part_of(expected["model"], name).state_dict()
        assert all(torch.equal(tensor, ours[key]) for key, tensor in part.state_dict().items())


def test_saving_a_part_leaves_the_whole_alone(folder: Path, tmp_path: Path):
    model = RSMoEForConditionalGeneration.from_pretrained(folder)
    model.save_pretrained(tmp_path / "before")
    for name in PARTS:
        part_of(model, name).save_pretrained(tmp_path / "parts" / name)
    model.save_pretrained(tmp_path / "after")
    assert (tmp_path / "after/config.json").read_text() == (tmp_path / "before/config.json").read_text()


def test_encoder_alone_gives_the_same_features(work: Path, expected: dict):
    encoder = RSMoEVisionLanguageEncoder.from_pretrained(work / "parts" / "encoder").eval()
    rows = load_file(work / "inputs.safetensors")
    images = {name: rows[name] for name in ("pixel_values", "qformer_input_ids", "qformer_attention_mask")}
    with torch.no_grad():
        assert torch.equal(encoder(**images), expected["model"].model.encoder(**images))


def test_full_expert_alone(tmp_path: Path):
    model = RSMoEModel(tiny_config(expert_config={"expert_type": "full"}))
    model.experts["object"].save_pretrained(tmp_path)
    again = RSMoEExpert.from_pretrained(tmp_path)
    ours = model.experts["object"].state_dict()
    assert again.config.expert_type == "full"
    assert ours.keys() == again.state_dict().keys()
    assert all(torch.equal(tensor, ours[key]) for key, tensor in again.state_dict().items())


def test_auto_classes_with_the_package(folder: Path):
    assert type(AutoModel.from_pretrained(folder)) is RSMoEModel
    assert type(AutoModelForImageTextToText.from_pretrained(folder)) is RSMoEForConditionalGeneration
    assert type(AutoProcessor.from_pretrained(folder)) is RSMoEProcessor


def test_code_in_the_folder_is_the_packages_own(folder: Path):
    """Every file that a saved folder carries is one of the package's root files, unchanged."""
    package = Path(sys.modules["modeling_rsmoe"].__file__).parent
    carried = sorted(path.name for path in folder.glob("*.py"))
    assert {"configuration_rsmoe.py", "modeling_rsmoe.py", "processing_rsmoe.py", "experts_rsmoe.py"} <= set(carried)
    for name in carried:
        assert (folder / name).read_bytes() == (package / name).read_bytes(), name
