"""A training whose loss, gradient or weights are not finite ends at once: it says where, and keeps the last good
checkpoint."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from modeling_rsmoe.cli import app
from modeling_rsmoe.training import read_settings, train_stage
from modeling_rsmoe.training.alignment import AlignmentModel
from modeling_rsmoe.training.checkpoints import NotFiniteError, save_tensors
from modeling_rsmoe.training.examples import ExampleCollator
from modeling_rsmoe.training.trainer import ExampleTrainer


NAN = float("nan")


def run(start, data, features, settings_file, output, stage="stage2", changes=()):
    torch.set_num_threads(1)
    changes = ["--one_stage", "true", "--save_steps", "1", *changes]
    recipe, arguments = read_settings(settings_file, stage, output, changes)
    return train_stage(stage, recipe, arguments, data, output, start, features=features)


def broken_at(step, break_loss):
    """`compute_loss` of a trainer that breaks the loss of a step, counted from 1."""
    compute = ExampleTrainer.compute_loss

    def broken(self, *arguments, **options):
        loss = compute(self, *arguments, **options)
        return break_loss(loss) if self.state.global_step == step - 1 else loss

    return broken


def nan_gradients(loss):
    loss.register_hook(lambda gradient: gradient * NAN)
    return loss


def states(output: Path) -> list[str]:
    return sorted(path.name for path in (output / ".training").glob("*checkpoint*"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, break_loss", [("loss", lambda loss: loss * NAN), ("gradient norm", nan_gradients)], ids=["loss", "gradient"]
)
def test_the_first_step_that_breaks(name, break_loss, start, data, features, settings_file, tmp_path, monkeypatch):
    monkeypatch.setattr(ExampleTrainer, "compute_loss", broken_at(3, break_loss))
    output = tmp_path / "output"
    told = (
        rf"the training stopped: the {name} of step 3 is nan, in the examples 8 to 11 \(\d.png.*\). Begin again with "
    )
    with pytest.raises(
        NotFiniteError, match=rf"{told}a lower learning_rate .*another --output. .*checkpoint-2 is intact"
    ):
        run(start, data, features, settings_file, output)
    assert states(output) == ["checkpoint-1", "checkpoint-2"] and not (output / "config.json").exists()
    trained = load_file(output / ".training" / "checkpoint-2" / "trained.safetensors")
    assert all(tensor.isfinite().all() for tensor in trained.values())


def test_the_examples_are_those_of_the_step(start, data, features, settings_file, tmp_path, monkeypatch):
    """The images that the error names are the ones that the step's batches held."""
    seen, collate = [], ExampleCollator.__call__

    def noted(self, rows):
        seen.append({Path(row["image"]).name for row in rows})
        return collate(self, rows)

    monkeypatch.setattr(ExampleCollator, "__call__", noted)
    monkeypatch.setattr(ExampleTrainer, "compute_loss", broken_at(2, lambda loss: loss * NAN))
    changes = ["--gradient_accumulation_steps", "2", "--per_device_train_batch_size", "2"]
    with pytest.raises(NotFiniteError, match="examples 4 to 7") as raised:
        run(start, data, features, settings_file, tmp_path / "output", changes=changes)
    assert all(image in str(raised.value) for image in seen[2] | seen[3])


def test_a_learning_rate_that_explodes(start, data, features, settings_file, tmp_path):
    """By itself, through the command line: one line, exit code 2, no checkpoint that looks finished."""
    output = tmp_path / "output"
    command = ["train", "stage1", "--config", settings_file, "--data", data, "--output", output, "--model", start]
    command += ["--features", features, "--learning_rate", "1e30", "--warmup_steps", "0", "--max_grad_norm", "0"]
    result = CliRunner().invoke(app, [str(word) for word in command], catch_exceptions=False, prog_name="rsmoe")
    line = result.stderr.splitlines()[-1]
    assert result.exit_code == 2 and "finished" not in result.stdout, result.output
    assert line.startswith("rsmoe: error: the training stopped: ") and "is intact" in line
    assert json.loads((output / ".training" / "training.json").read_text())["finished"] is False
    assert not (output / "config.json").exists() and not (output / "training.json").exists()


def test_alignment_too(start, data, features, settings_file, tmp_path, monkeypatch):
    forward = AlignmentModel.forward

    def broken(self, **inputs):
        outputs = forward(self, **inputs)
        return {**outputs, "loss": outputs["loss"] * NAN}

    monkeypatch.setattr(AlignmentModel, "forward", broken)
    changes = ["--alignment_steps", "3", "--alignment_batch_size", "4"]
    with pytest.raises(NotFiniteError, match=r"the loss of step 1 is nan, in the examples 0 to 3 \(\d.png"):
        run(start, data, features, settings_file, tmp_path / "output", "stage1", changes)


def test_a_checkpoint_names_the_tensor(tmp_path):
    for number in (NAN, float("inf")):
        tensors = {"a": torch.ones(3), "b": torch.tensor([1.0, number]), "c": torch.tensor(7)}
        with pytest.raises(
            NotFiniteError, match=r"^b is not finite in torch.float32, so w.safetensors is not written"
        ):
            save_tensors(tensors, tmp_path / "w.safetensors")
    assert not list(tmp_path.iterdir())
    save_tensors({"a": torch.ones(3), "empty": torch.ones(0), "c": torch.tensor(7)}, tmp_path / "w.safetensors")
