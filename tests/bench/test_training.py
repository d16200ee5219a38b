"""Both training loops run on the same rows, and their time is told by part."""

import json

import numpy as np
import pytest
import yaml
from PIL import Image

from modeling_rsmoe.bench.names import OURS_SETTINGS, OURS_SINGLE, TRL
from modeling_rsmoe.bench.training import Course, training
from modeling_rsmoe.errors_rsmoe import RSMoEError
from tests.tiny import tiny_checkpoint


CAPTIONS = ["it is an airport with many planes .", "many planes are parked near the terminal .", "two white planes ."]


@pytest.fixture(scope="module")
def course(tmp_path_factory) -> Course:
    folder = tmp_path_factory.mktemp("course")
    tiny_checkpoint(folder / "start")
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
    return Course(
        folder / "start", folder / "training.yaml", folder / "data", (), folder / "features", rows=2, steps=2
    )


def test_three_loops_take_turns(course):
    told = []
    (group,), facts = training(course, 1, lambda name, share: told.append(name))
    assert told == list(group["times"]) == [TRL, OURS_SINGLE, OURS_SETTINGS] and group["base"] == TRL
    assert all(own["first"] > 0 and len(own["wall"]) == 1 and own["cpu"][0] > 0 for own in group["times"].values())
    shares = facts["shares"]
    assert ["ViT" in own for own in shares.values()] == [True, False, False]  # ours has its features cached
    for own in shares.values():
        assert sum(own.values()) == pytest.approx(1) and min(own.values()) >= 0
        assert {"backward", "optimizer", "base LM"} <= own.keys()
    completions = facts["completions in a row"]
    assert completions[TRL] == completions[OURS_SINGLE] == 1 < completions[OURS_SETTINGS]


def test_one_step_is_too_few(course):
    from dataclasses import replace

    with pytest.raises(RSMoEError, match="1 step of each loop is too few"):
        training(replace(course, steps=1), 1, lambda name, share: None)
