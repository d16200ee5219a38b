"""Every example runs as it stands, at tiny size."""

import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from modeling_rsmoe import RSMoEForConditionalGeneration
from modeling_rsmoe.hub.assemble import merge_trained

from .tiny import tiny_checkpoint


EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
CAPTIONS = [
    "it is an airport with many planes .",
    "there are some green trees .",
    "many planes are parked near the terminal .",
    "a long runway is beside the terminal .",
    "two white planes .",
]


def example(name: str):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A data folder of ten made images."""
    folder = tmp_path_factory.mktemp("data")
    generator = np.random.default_rng(0)
    captions, questions = [], []
    for i in range(10):
        Image.fromarray(generator.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(folder / f"{i}.png")
        split = "train" if i < 6 else "val"
        captions.append({"image": f"{i}.png", "dataset": "Tiny", "split": split, "captions": CAPTIONS})
        question = {"question": "Is there a plane?", "question_type": "presence", "answer": "yes"}
        questions.append({"image": f"{i}.png", "dataset": "TinyVQA", "split": split, **question})
    for name, rows in (("captions", captions), ("vqa", questions)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_every_example_is_tested():
    tested = Path(__file__).read_text()
    assert all(f'example("{path.stem}")' in tested for path in EXAMPLES.glob("*.py"))


def test_caption_image(checkpoint, data, capsys):
    result = example("caption_image").main(str(checkpoint), str(data / "0.png"))
    assert capsys.readouterr().out.strip().endswith(result["text"]) and list(result["parts"]) == [
        "theme",
        "object",
        "relation",
    ]


def test_time_batching(checkpoint, capsys):
    ratio = example("time_batching").main([str(checkpoint), "--images", "2", "--repeats", "1", "--tokens", "3"])
    assert f"cost {ratio:.3f} of single calls" in capsys.readouterr().out


def test_train_nano(checkpoint, data, tmp_path):
    """All steps; stopped and gone on with, stage 2 ends with the very weights of a run that was never stopped."""
    main = example("train_nano").main
    once, twice = tmp_path / "once", tmp_path / "twice"

    def step(name, output, steps=None, **changes):
        arguments = [
            name,
            "--data",
            str(data),
            "--start",
            str(checkpoint),
            "--output",
            str(output),
            "--datasets",
            "Tiny",
        ]
        main([*arguments, *(["--steps", str(steps)] if steps else [])])

    step("features", once)
    step("align", once, 2)
    step("stage1", once, 2)
    shutil.copytree(once, twice)
    step("stage2", once, 2)
    stop = main.__globals__["save_checkpoint"]

    def save_then_stop(*arguments):
        stop(*arguments)
        raise KeyboardInterrupt

    main.__globals__["CHECKPOINT_EVERY"] = 1
    main.__globals__["save_checkpoint"] = save_then_stop
    with pytest.raises(KeyboardInterrupt):
        step("stage2", twice, 2)
    main.__globals__["save_checkpoint"] = stop
    step("stage2", twice, 2)
    ours, theirs = (load_file(folder / "stage2" / "checkpoint.safetensors") for folder in (once, twice))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert all((once / stage / "loss.png").stat().st_size > 1000 for stage in ("align", "stage1", "stage2"))

    step("export", once)
    start = RSMoEForConditionalGeneration.from_pretrained(checkpoint)
    model = RSMoEForConditionalGeneration.from_pretrained(checkpoint)
    merge_trained(model, once / "trained.safetensors")
    names = dict(model.named_parameters())
    changed = {name for name, p in start.named_parameters() if not torch.equal(p, names[name])}
    learned = (
        "qformer",
        "query_tokens",
        "projection",
        "language_model.layers",
        "router",
        "experts",
        "vision_model.layernorm",
    )
    for part in learned:
        assert any(part in name for name in changed), part
    assert not any("vision_model.encoder" in name or "embed_tokens" in name for name in changed)
