"""A training that is killed goes on to the very weights of one that is not; what breaks leaves checkpoints intact."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from modeling_rsmoe import RSMoEError
from modeling_rsmoe.training import checkpoints, logs, read_settings, train_stage

from .runs import killed_at


CHANGES = {
    "stage1": ["--alignment_steps", "3", "--alignment_batch_size", "4", "--standardize_vision", "true"],
    "stage2": ["--one_stage", "true"],
}


def run(stage, start, data, features, settings_file, output, resume=False, changes=()):
    torch.set_num_threads(1)
    recipe, arguments = read_settings(settings_file, stage, output, [*CHANGES[stage], *changes])
    return train_stage(stage, recipe, arguments, data, output, start, resume=resume, features=features)


def command(stage, start, data, features, settings_file, output) -> list[str | Path]:
    folders = ["--config", settings_file, "--data", data, "--output", output, "--model", start]
    return ["train", stage, *folders, "--features", features, *CHANGES[stage]]


@pytest.mark.slow
def test_killed_in_alignment_and_in_stage1(start, data, features, settings_file, tmp_path):
    places = (start, data, features, settings_file)
    whole = run("stage1", *places, tmp_path / "whole")
    broken = tmp_path / "broken"
    killed_at("alignment:3", command("stage1", *places, broken))
    killed_at("stage1:3", [*command("stage1", *places, broken), "--resume"])
    assert not (broken / "config.json").exists()
    run("stage1", *places, broken, resume=True)
    (broken / "training.json").unlink()  # killed before the last file was written
    run("stage1", *places, broken, resume=True)
    for name in ("model.safetensors", ".training/learned.safetensors", ".training/alignment.safetensors"):
        assert (broken / name).read_bytes() == (whole / name).read_bytes()
    logs = [json.loads((folder / "trainer_state.json").read_text())["log_history"] for folder in (whole, broken)]
    assert [entry["loss"] for entry in logs[0]] == [entry["loss"] for entry in logs[1]]


@pytest.mark.slow
def test_stage2_goes_on(start, data, features, settings_file, tmp_path, monkeypatch):
    """Stopped in the middle of writing a checkpoint: the one before is whole and is gone on from."""
    places = (start, data, features, settings_file)
    whole = run("stage2", *places, tmp_path / "whole")
    write = checkpoints.write_checkpoint

    def full_disk(folder, *state):
        write(folder, *state)
        if folder.name == ".checkpoint-4.part":
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints, "write_checkpoint", full_disk)
    broken = tmp_path / "broken"
    with pytest.raises(RSMoEError, match="No space left on device.*checkpoint-2 is intact.*--resume"):
        run("stage2", *places, broken)
    assert sorted(path.name for path in (broken / ".training").glob("*checkpoint*")) == ["checkpoint-2"]
    monkeypatch.undo()
    with pytest.raises(RSMoEError, match="add --resume"):
        run("stage2", *places, broken)
    with pytest.raises(RSMoEError, match=r"arguments.learning_rate was 0.001, is 0.01"):
        run("stage2", *places, broken, resume=True, changes=["--learning_rate", "0.01"])
    run("stage2", *places, broken, resume=True)
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (broken, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    with pytest.raises(RSMoEError, match="holds a finished training"):
        run("stage2", *places, broken, resume=True)


@pytest.mark.slow
def test_images_lost_in_the_middle(start, data, features, settings_file, tmp_path, monkeypatch):
    """Where the ViT learns, every step reads images."""
    copy = Path(shutil.copytree(data, tmp_path / "data"))
    changes = ["--vision", "full", "--alignment_steps", "0", "--standardize_vision", "false"]
    run("stage1", start, data, features, settings_file, tmp_path / "whole", changes=changes)
    shown = logs.ExampleBar.on_step_end

    def lose(self, args, state, control, **kwargs):
        shown(self, args, state, control, **kwargs)
        if state.global_step == 2:
            for image in copy.glob("*.png"):
                image.rename(image.with_suffix(".lost"))

    monkeypatch.setattr(logs.ExampleBar, "on_step_end", lose)
    broken = (start, copy, features, settings_file, tmp_path / "broken")
    with pytest.raises(RSMoEError, match=r"stopped: .*\.png.*checkpoint-2 is intact.*--resume"):
        run("stage1", *broken, changes=changes)
    monkeypatch.undo()
    assert (tmp_path / "broken" / ".training" / "checkpoint-2").is_dir()
    for image in copy.glob("*.lost"):
        image.rename(image.with_suffix(".png"))
    run("stage1", *broken, resume=True, changes=changes)
    name = "model.safetensors"
    assert (tmp_path / "broken" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.slow
def test_a_damaged_checkpoint_is_named(start, data, features, settings_file, tmp_path):
    places = (start, data, features, settings_file)
    broken = tmp_path / "broken"
    killed = ["--save_steps", "2"]

    write = checkpoints.write_checkpoint

    def stop_at_the_second(folder, *state):
        if folder.name != ".checkpoint-2.part":
            raise KeyboardInterrupt
        write(folder, *state)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints, "write_checkpoint", stop_at_the_second)
        with pytest.raises(KeyboardInterrupt):
            run("stage2", *places, broken, changes=killed)
    file = broken / ".training" / "checkpoint-2" / "optimizer.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(RSMoEError, match="checkpoint-2 is damaged"):
        run("stage2", *places, broken, resume=True, changes=killed)


@pytest.mark.slow
def test_nothing_is_pickled(start, data, features, settings_file, tmp_path):
    output = run("stage2", start, data, features, settings_file, tmp_path / "output", changes=["--max_steps", "2"])
    names = {path.name for path in (output / ".training" / "checkpoint-2").iterdir()}
    assert names == {"trained.safetensors", "optimizer.safetensors", "schedule.json", "trainer_state.json"}
    assert not [path for path in output.rglob("*") if path.suffix in (".pt", ".pth", ".bin", ".pkl")]
    trained = load_file(output / ".training" / "checkpoint-2" / "trained.safetensors")
    assert all(".router." in name or ".experts." in name for name in trained)  # only what learns
