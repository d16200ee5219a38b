"""All training loops run on the same examples, and the bench shows where their time goes."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import yaml
from PIL import Image

from modeling_rsmoe.bench.names import ALL_REFERENCES, ONE_REFERENCE, TRL
from modeling_rsmoe.bench.training import training
from modeling_rsmoe.bench.workbench import Workbench
from modeling_rsmoe.errors_rsmoe import RSMoEError
from tests.tiny import tiny_model


pytestmark = pytest.mark.slow


CAPTIONS = ["it is an airport with many planes .", "many planes are parked near the terminal .", "two white planes ."]


@pytest.fixture(scope="module")
def small(checkpoint, tmp_path_factory) -> Workbench:
    folder = tmp_path_factory.mktemp("training")
    shutil.copytree(checkpoint, folder / "start")
    generator, lines = np.random.default_rng(0), []
    (folder / "data").mkdir()
    for i in range(6):
        pixels = generator.integers(0, 255, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "data" / f"{i}.png")
        record = {"image": f"{i}.png", "dataset": "Tiny", "split": "train", "captions": CAPTIONS}
        lines.append(json.dumps(record))
    (folder / "data" / "captions.jsonl").write_text("\n".join(lines))
    settings = {"lora_r": 2, "rewrite_share": 0, "answer_share": 0, "learning_rate": 1e-4}
    (folder / "training.yaml").write_text(yaml.safe_dump({"stage1": settings}))
    return Workbench(tiny_model(), None, folder / "start", data=folder / "data", config=folder / "training.yaml")


def test_three_loops_run_in_rounds(small):
    reported = []
    bench = replace(small, progress=lambda name, done, total: reported.append(name))
    (group,), facts = training(bench, batch_size=2, steps=2, features=small.folder.parent / "features")
    assert reported == list(group["times"]) == [TRL, ONE_REFERENCE, ALL_REFERENCES] and group["base"] == TRL
    assert all(
        times["first"] > 0 and len(times["wall"]) == 1 and times["cpu"][0] > 0 for times in group["times"].values()
    )
    shares = facts["shares"]
    assert ["ViT" in of_loop for of_loop in shares.values()] == [True, False, False]  # ours has its features cached
    for of_loop in shares.values():
        assert sum(of_loop.values()) == pytest.approx(1) and min(of_loop.values()) >= 0
        assert {"backward", "optimizer", "base LM"} <= of_loop.keys()
    completions = facts["completions per example"]
    assert completions[TRL] == completions[ONE_REFERENCE] == 1 < completions[ALL_REFERENCES]


def test_one_step_is_too_few(small):
    with pytest.raises(RSMoEError, match="1 step of each loop is too few"):
        training(small, steps=1)
