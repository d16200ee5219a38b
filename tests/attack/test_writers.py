"""Two processes, one output: the second is refused with who holds it, and leaves what the first writes alone."""

import os
from pathlib import Path

import numpy as np
import pytest
import yaml

from modeling_rsmoe.utils.files import only_writer

from ..scenes.rasters import UTM, write_raster
from .conftest import refusal


SETTINGS = {"max_steps": 2, "per_device_train_batch_size": 2, "one_stage": True, "question_share": 0}


@pytest.mark.parametrize("command", ["evaluate", "train", "assemble", "quantize", "collection", "encode", "scene"])
def test_the_second_is_refused(command: str, checkpoint: Path, data: Path, tmp_path: Path) -> None:
    settings = tmp_path / "training.yaml"
    settings.write_text(yaml.safe_dump({"stage2": SETTINGS}))
    scene = write_raster(tmp_path / "scene.tif", np.full((3, 64, 64), 9, np.uint8), **UTM)
    model, run, report = ("--model", checkpoint), tmp_path / "run", tmp_path / "report.json"
    output, words = {
        "evaluate": ("report.jsonl", ("evaluate", checkpoint, "--data", data, "--output", report)),
        "train": ("run", ("train", "stage2", "--config", settings, "--data", data, *model, "--output", run)),
        "assemble": ("nano", ("assemble", "rs-moe-nano", "--output", tmp_path / "nano")),
        "quantize": ("half", ("quantize", checkpoint, "--dtype", "float16", "--output", tmp_path / "half")),
        "collection": ("all.parquet", ("caption", data, *model, "--output", tmp_path / "all.parquet")),
        "encode": ("all.parquet", ("encode", data, *model, "--output", tmp_path / "all.parquet")),
        "scene": ("out.jsonl", ("caption", scene, "--tile", 32, *model, "--output", tmp_path / "out.jsonl")),
    }[command]
    with only_writer(tmp_path / output):
        told = refusal(*words)
    assert f"{output} is being written by process {os.getpid()} on " in told and told.endswith("give another output")
    assert not list(tmp_path.rglob(f".{output}*"))  # nothing is left
