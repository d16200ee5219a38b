"""FSDP by the shipped file of accelerate: two processes with the model spread over them learn what one does."""

import json
import subprocess

import pytest
import torch
from safetensors.torch import load_file

from modeling_rsmoe import RSMoEConfig
from modeling_rsmoe.hub.sources import HUB_CONFIGS
from modeling_rsmoe.training import memory, read_settings, train_stage

from ..forks import run_forked
from .runs import ENVIRONMENT


pytestmark = pytest.mark.slow


# accelerate 1.15 spreads models over accelerators only (AcceleratorState looks at the kind of device first). Told that
# the processes have some, it does with gloo and CPUs what it does with GPUs.
DRIVER = """
import json, sys
import torch
from accelerate.state import PartialState
from accelerate.utils import DistributedType

torch.distributed.init_process_group("gloo")
PartialState._prepare_backend = lambda self, *args, **kwargs: ("gloo", DistributedType.MULTI_GPU)

from modeling_rsmoe.cli import main
from modeling_rsmoe.training.trainer import ExampleTrainer

file = sys.argv.pop(1)
train = ExampleTrainer.train

def own(tensor):
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor

def train_and_count(self, *args, **kwargs):
    result = train(self, *args, **kwargs)
    states = [state[name] for state in self.optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
    counts = {
        "version": self.accelerator.state.fsdp_plugin.fsdp_version,
        "units": sum(type(module).__name__.startswith("FSDP") for module in self.model.modules()),
        "weights": sum(own(p).nbytes for p in self.model.parameters()),
        "optimizer": sum(own(state).nbytes for state in states),
    }
    if self.args.process_index == 0:
        open(file, "w").write(json.dumps(counts))
    return result

ExampleTrainer.train = train_and_count
main()
"""


@pytest.fixture(scope="module")
def eva(shared_checkpoint):
    """With a ViT of InstructBLIP's kind, as the sizes that are spread."""
    vision = {"model_type": "instructblip_vision_model", "intermediate_size": 24}
    return shared_checkpoint(vision_config=vision)


def spread(count: int, folder, command) -> subprocess.CompletedProcess:
    """`rsmoe COMMAND` in processes of accelerate with the shipped fsdp.yaml, in full precision."""
    (folder / "driver.py").write_text(DRIVER)
    launch = ["-m", "accelerate.commands.launch"]
    launch += ["--config_file", HUB_CONFIGS / "accelerate" / "fsdp.yaml", "--num_processes", count]
    launch += ["--mixed_precision", "no", "--main_process_port", 0, folder / "driver.py", folder / "counts.json"]
    environment = {**ENVIRONMENT, "ACCELERATE_TORCH_DEVICE": "cpu", "PYTHONPATH": str(HUB_CONFIGS.parent)}
    return run_forked([*launch, *command], environment)


def losses(output) -> list[float]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (folder,) = (output / "tensorboard").iterdir()
    events = EventAccumulator(str(folder))
    events.Reload()
    return [event.value for event in events.Scalars("train/loss")]


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_spread_over_two_processes(eva, data, features, settings_file, tmp_path, stage):
    torch.set_num_threads(1)
    one, two = tmp_path / "one", tmp_path / "two"
    changes = ["--max_steps", "3", "--qformer", "queries", "--lora_dropout", "0"]
    if stage == "stage2":
        changes = ["--max_steps", "3", "--one_stage", "true", "--activation_checkpointing", "true"]
    recipe, arguments = read_settings(settings_file, stage, one, changes)
    train_stage(stage, recipe, arguments, data, one, eva, features=features)
    command = ["train", stage, "--config", settings_file, "--data", data, "--output", two, "--model", eva]
    command += ["--features", features, *changes, "--per_device_train_batch_size", 2]
    result = spread(2, tmp_path, command)
    assert result.returncode == 0, result.stderr

    model = memory.without_weights(RSMoEConfig.from_pretrained(eva), recipe)
    counts, expected = json.loads((tmp_path / "counts.json").read_text()), memory.step_memory(model, "FSDP", 2, False)
    assert counts["version"] == 2 and counts["units"] > 6  # two layers of each part, and the whole
    assert (counts["weights"], counts["optimizer"]) == (expected.weights, expected.optimizer)

    ours, theirs = losses(two), losses(one)
    assert len(ours) == 3 and ours == pytest.approx(theirs, abs=1e-4) and ours[0] != ours[-1]
    first, second = (load_file(folder / "model.safetensors") for folder in (one, two))
    began = load_file(eva / "model.safetensors")
    adapters = [name for name in began if "lora_" in name]
    if stage == "stage2":  # the adapters began anew: the base LM exactly, with B = 0
        assert all((first[name] != began[name]).any() for name in adapters)
        began |= {name: first[name] if "lora_A" in name else torch.zeros_like(first[name]) for name in adapters}
    moved = sum((first[name] - began[name]).abs().sum() for name in began)
    apart = sum((first[name] - second[name]).abs().sum() for name in began)
    # Adam divides by the gradient's size: where it is nearly 0 (a bias of keys), rounding decides its sign.
    assert moved > 1 and apart < 1e-2 * moved, (moved, apart)
