"""Several processes learn what one does from as many rows a step."""

import json

import pytest
import torch
from safetensors.torch import load_file

from modeling_rsmoe.training import read_settings, train_stage

from .runs import in_processes


pytestmark = pytest.mark.slow


CHANGES = ["--lora_dropout", "0", "--max_steps", "3", "--qformer", "queries"]


def losses(output) -> list[dict]:
    log = json.loads((output / "trainer_state.json").read_text())["log_history"]
    return [{name: value for name, value in entry.items() if name.startswith("loss")} for entry in log]


def test_two_processes_are_one_with_twice_the_batch(start, data, features, settings_file, tmp_path):
    torch.set_num_threads(1)
    one, two = tmp_path / "one", tmp_path / "two"
    recipe, arguments = read_settings(settings_file, "stage1", one, CHANGES)
    train_stage("stage1", recipe, arguments, data, one, start, features=features)
    folders = ["--config", settings_file, "--data", data, "--output", two, "--model", start]
    folders += ["--features", tmp_path / "features"]  # made by one process while the other waits
    said = in_processes(2, ["train", "stage1", *folders, *CHANGES, "--per_device_train_batch_size", "2"])
    assert said.count("reading the data") == 1 and "custom code" not in said, said
    record = json.loads((two / "training.json").read_text())
    assert record["arguments"]["examples_per_step"] == 4 and record["examples"] == 12
    assert json.loads((two / "training_args.json").read_text())["per_device_train_batch_size"] == 2
    ours, theirs = losses(two), losses(one)
    assert len(ours) == len(theirs) == 3
    for our, their in zip(ours, theirs):
        assert our.keys() == their.keys() and all(our[name] == pytest.approx(their[name], abs=1e-4) for name in our)
    # Adam divides by the gradient's size: where it is nearly 0 (a bias of keys), rounding decides its sign.
    began, first, second = (load_file(folder / "model.safetensors") for folder in (start, one, two))
    moved = sum((first[name] - began[name]).abs().sum() for name in began)
    apart = sum((first[name] - second[name]).abs().sum() for name in began)
    assert moved > 1 and apart < 1e-2 * moved, (moved, apart)
