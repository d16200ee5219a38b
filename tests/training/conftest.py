"""A tiny checkpoint, a tiny data folder and the settings of tiny trainings."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image


CAPTIONS = [
    "it is an airport with many planes .",
    "there are some green trees .",
    "many planes are parked near the terminal .",
    "a long runway is beside the terminal .",
    "two white planes .",
]
SCENES = ["airport", "forest", "harbor"]
TINY = {
    "per_device_train_batch_size": 4,
    "warmup_steps": 1,
    "logging_steps": 1,
    "save_steps": 2,
    "learning_rate": 1e-3,
    "max_steps": 4,
}
SETTINGS = {
    "stage1": {**TINY, "lora_r": 2, "lora_alpha": 4, "lora_dropout": 0.1},
    "stage2": {**TINY},
}


@pytest.fixture(scope="module")
def start(checkpoint) -> Path:
    return checkpoint


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    """Eight training images and four of the val split, with captions and a question each."""
    folder = tmp_path_factory.mktemp("data")
    generator = np.random.default_rng(0)
    captions, questions = [], []
    for i in range(12):
        Image.fromarray(generator.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(folder / f"{i}.png")
        split = "train" if i < 8 else "val"
        texts = [text.replace("airport", SCENES[i % 3]) for text in CAPTIONS]
        captions.append({"image": f"{i}.png", "dataset": "Tiny", "split": split, "captions": texts})
        question = {"question": "Is there a plane?", "question_type": "presence", "answer": "yes"}
        questions.append({"image": f"{i}.png", "dataset": "TinyVQA", "split": split, **question})
    for name, rows in (("captions", captions), ("vqa", questions)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="session")
def features(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("features")


@pytest.fixture(scope="session")
def settings_file(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("settings") / "training.yaml"
    file.write_text(yaml.safe_dump(SETTINGS))
    return file
