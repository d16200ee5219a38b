"""`rsmoe train DATA`: one's own captions, from the images to a checkpoint with scores and a card."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file

from modeling_rsmoe import RSMoEForConditionalGeneration, RSMoEProcessor
from modeling_rsmoe.errors_rsmoe import RSMoEError
from modeling_rsmoe.evaluation.markdown import summary_table
from modeling_rsmoe.training import finetune
from modeling_rsmoe.training.modules import module_of

from ..cli.test_train import rsmoe  # noqa: F401
from .conftest import features, start  # noqa: F401


TEXTS = ["it is an airport with many planes .", "there are some green trees .", "two white planes ."]


def own_images(folder, count: int = 30, texts=TEXTS):
    """An ImageFolder without splits, a line for each caption: the first half of the images has two of them."""
    generator = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for i in range(count):
        Image.fromarray(generator.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(folder / f"{i:02}.png")
        captions = [texts[i % len(texts)], *([texts[-1]] if i < count // 2 else [])]
        lines += [json.dumps({"file_name": f"{i:02}.png", "text": text}) for text in captions]
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture(autouse=True)
def _few_steps(monkeypatch):
    monkeypatch.setattr(finetune, "PASSES", {"stage1": 1, "stage2": 1})
    monkeypatch.setattr(finetune, "MIN_STEPS", 2)
    monkeypatch.setattr(finetune, "RERANKER_IMAGES", 20)


@pytest.mark.slow
def test_from_images_to_a_card(rsmoe, start, features, tmp_path):  # noqa: F811
    """One command, no setting: and the estimate is said before the work."""
    data, output = own_images(tmp_path / "my chips"), tmp_path / "out"
    command = ("train", data, "--output", output, "--model", start, "--features", features)
    code, out, err = rsmoe(*command)
    assert code == 0, err
    estimate = err.index("minutes: features ")
    assert "24 images to learn from, 6 to score; experts theme, object (too few captions speak of relation)" in err
    assert all(f"{part} " in err[estimate:].splitlines()[0] for part in ("stage1", "stage2", "reranker", "evaluation"))
    assert estimate < err.index("writing the examples") and "Traceback" not in err and "Warning" not in err
    for row in ("full model", "captions of the most similar", "the checkpoint before", "the most frequent"):
        assert f"| {row}" in out

    report = json.loads((output / "report.json").read_text())
    (result,) = report["results"]
    assert (result["dataset"], result["split"], result["items"]) == ("my chips", "test", 6)
    assert {"constant", "nearest", "retrieval", "start"} == set(result["baselines"])
    assert report["checkpoint"]["name"] == "out" and report["against"][0]["name"] == start.name
    blind = summary_table([report]).splitlines()[-1].split("|")[-2]  # nearest and start do see the image
    assert f"{result['baselines']['constant']['CIDEr-D']['value']:.1f}" == blind.strip()
    card = (output / "README.md").read_text()
    assert "# out\n" in card and f"{result['scores']['CIDEr-D']['value']:.1f}" in card
    assert "24 captioned images and 0 questions, each counted as often as it was drawn from, of my chips (sha" in card
    assert "my-chips" in ModelCard.load(output / "README.md").data.datasets
    record = json.loads((output / "training.json").read_text())
    assert record["finished"] and record["reranker"] and record["before"]["stage"] == "stage1"
    assert record["recipe"]["expert_names"] == ["theme", "object"]
    names = {file.name for file in output.iterdir()}
    assert {"stage1.png", "stage2.png", "predictions.jsonl"} <= names and not {".training", "tensorboard"} & names
    model, processor = RSMoEForConditionalGeneration.from_pretrained(output), RSMoEProcessor.from_pretrained(output)
    inputs = processor(images=data / "00.png", text="Describe the image.", return_tensors="pt")
    result = processor.post_process_generation(model.generate(**inputs, return_dict_in_generate=True))[0]
    assert list(result["expert_texts"]) == ["theme", "object"]

    code, _, err = rsmoe(*command)
    assert code == 2 and "holds a finished training" in err


@pytest.mark.slow
def test_what_learns(start, features, tmp_path, without_java):  # noqa: F811
    """Encoder and base LM in stage 1; then router and experts, which go on from the checkpoint's own."""
    data, output = own_images(tmp_path / "own"), tmp_path / "out"
    made = finetune.plan(data, output, start)
    assert made.fits_reranker and made.steps == {"stage1": 3, "stage2": 3} and made.examples_per_step == 8
    finetune.fine_tune(made, output, features=features)
    old, new = load_file(start / "model.safetensors"), load_file(output / "model.safetensors")
    moved = {module_of(name) for name in new if name in old and not torch.equal(old[name], new[name])}
    assert moved == {"qformer", "projection", "language_model", "router", "experts"}
    began, ended = (weights["model.experts.theme.layers.0.self_attn.q_proj_lora.lora_B"] for weights in (old, new))
    assert (began - ended).abs().max() < 0.1 * began.abs().max()  # not from zero again


@pytest.mark.slow
def test_goes_on_after_a_stop(start, features, tmp_path, monkeypatch, without_java):  # noqa: F811
    """Wherever it was stopped, with the weights of a run that never was."""
    data = own_images(tmp_path / "own")
    whole = tmp_path / "whole"
    finetune.fine_tune(finetune.plan(data, whole, start), whole, features=features)
    output = tmp_path / "out"
    for broken in ("train_reranker", "_evaluate", "write_card", "_finish"):
        with monkeypatch.context() as patch:
            patch.setattr(finetune, broken, _stop)
            with pytest.raises(KeyboardInterrupt):
                finetune.fine_tune(finetune.plan(data, output, start), output, features=features)
    moved = Path.replace
    with monkeypatch.context() as patch:  # weights are moved last but one
        patch.setattr(Path, "replace", lambda file, to: _stop() if file.name == "training.json" else moved(file, to))
        with pytest.raises(KeyboardInterrupt):
            finetune.fine_tune(finetune.plan(data, output, start), output, features=features)
    assert (output / "model.safetensors").is_file() and not (output / "training.json").exists()
    finetune.fine_tune(finetune.plan(data, output, start), output, features=features)
    assert json.loads((output / "training.json").read_text())["finished"]
    old, new = load_file(whole / "model.safetensors"), load_file(output / "model.safetensors")
    assert old.keys() == new.keys() and all(torch.equal(old[name], new[name]) for name in old)


def _stop(*args, **kwargs):
    raise KeyboardInterrupt


def test_a_resumed_run_is_of_the_same_captions(start, tmp_path):  # noqa: F811
    data, output = own_images(tmp_path / "own"), tmp_path / "out"
    made = finetune.plan(data, output, start)
    assert finetune.plan(data, output, start) == made  # the estimate too, though it is measured
    with pytest.raises(RSMoEError, match="begun with other minutes"):
        finetune.plan(data, output, start, minutes=9)
    file = data / "metadata.jsonl"
    file.write_text(file.read_text().replace("white", "black"))
    with pytest.raises(RSMoEError, match="begun with other captions"):
        finetune.plan(data, output, start)


def test_splits_are_of_images(tmp_path):
    """Lines of one image are one record; splits that are there are kept."""
    captions, questions = finetune.own_records(own_images(tmp_path / "own"))
    splits = [record.split for record in captions]
    assert len(captions) == 30 and splits.count("test") == 6 and splits.count("train") == 24 and not questions
    assert len({record.image for record in captions}) == 30 and len(captions[0].captions) == 2
    lines = (tmp_path / "own" / "metadata.jsonl").read_text().splitlines()
    named = [json.loads(line) for line in lines]
    for line in named:
        line["split"] = "val" if int(line["file_name"][:2]) < 9 else "train"
    (tmp_path / "own" / "metadata.jsonl").write_text("\n".join(map(json.dumps, named)))
    captions, _ = finetune.own_records(tmp_path / "own")
    assert [record.image.name for record in captions if record.split == "val"] == [f"0{i}.png" for i in range(9)]


def test_questions_are_learned_where_there_are_some(start, tmp_path):  # noqa: F811
    """Those about images to learn from, and no others."""
    data = tmp_path / "own"
    own_images(data)
    record = {"dataset": "own", "split": "train", "question": "Is it?", "question_type": "x", "answer": "yes"}
    (data / "vqa.jsonl").write_text("".join(json.dumps({"image": f"{i:02}.png", **record}) + "\n" for i in range(30)))
    captions, questions = finetune.own_records(data)
    held_out = {record.image for record in captions if record.split == "test"}
    assert len(questions) == 24 and not held_out & {question.image for question in questions}
    made = finetune.plan(data, tmp_path / "out", start)
    assert finetune.settings(made, "stage1")[0].answer_share > 0
    assert finetune.settings(replace(made, questions=0), "stage1")[0].answer_share == 0


@pytest.mark.parametrize(
    ("images", "steps", "batch"),
    [(20, (20, 10), 8), (60, (60, 30), 8), (500, (500, 250), 8), (10_000, (600, 300), 16)],
)
def test_the_plan_fits_the_number_of_images(start, tmp_path, monkeypatch, images, steps, batch):  # noqa: F811
    """Ten passes over few images, fewer over many; half as many examples in stage 2."""
    monkeypatch.setattr(finetune, "PASSES", {"stage1": 10, "stage2": 5})
    data = own_images(tmp_path / "own")
    (record, *_), _ = finetune.own_records(data)
    records = [replace(record, split="train" if place % 5 else "test") for place in range(images)]
    made = finetune._decide(records, [], start, None)
    assert (made.steps["stage1"], made.steps["stage2"], made.examples_per_step) == (*steps, batch)
    assert made.test_images == min(images // 5, 100) and made.train_images == images * 4 // 5


@pytest.mark.skipif(torch.accelerator.is_available(), reason="about processors")
def test_bfloat16_is_for_processors_that_have_it(start, tmp_path, monkeypatch):  # noqa: F811
    records, _ = finetune.own_records(own_images(tmp_path / "own"))
    for known in ({"avx2": True}, {"avx2": True, "avx512_bf16": True}, {"amx_bf16": True}):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda known=known: known)
        made = finetune._decide(records, [], start, None)
        assert made.bf16 == finetune.settings(made, "stage2")[1].bf16 == (known != {"avx2": True})


def test_minutes(start, tmp_path, monkeypatch):  # noqa: F811
    """Fewer minutes are fewer steps; too few are refused with what would do."""
    monkeypatch.setattr(finetune, "PASSES", {"stage1": 100, "stage2": 50})
    monkeypatch.setattr(finetune, "_products_per_second", lambda *args: 1e5)
    (record, *_), _ = finetune.own_records(own_images(tmp_path / "own"))
    records = [replace(record, split="train" if place % 5 else "test") for place in range(60)]
    long = finetune._decide(records, [], start, None)
    total = sum(long.seconds.values()) / 60
    short = finetune._decide(records, [], start, 0.6 * total)
    assert all(short.steps[stage] < long.steps[stage] for stage in short.steps)
    assert sum(short.seconds.values()) / 60 == pytest.approx(0.6 * total, rel=0.1)
    with pytest.raises(RSMoEError, match=r"1 minutes are too few for these images; give \d+ or more"):
        finetune._decide(records, [], start, 1)


@pytest.mark.parametrize(
    ("case", "said"),
    [
        ("empty", "metadata.jsonl"),
        ("no folder", "does not exist"),
        ("no captions", "holds no records"),
        ("one image", "1 captioned images are too few"),
        ("two images", "2 captioned images are too few"),
        ("broken", "30 of 30 images cannot be read"),
        ("another language", "do not look English"),
        ("splits", "has the splits dev, train; it needs train and test"),
        ("existing output", "no training on your captions was begun there"),
        ("inside", "lies in the data folder"),
        ("no model", "there is no checkpoint nothing"),
        ("no space", "no space for"),
        ("no eval", 'pip install "rsmoe[eval]"'),
    ],
)
def test_bad_input(rsmoe, start, tmp_path, monkeypatch, case, said):  # noqa: F811
    """One line, exit code 2, nothing written."""
    data, output, model = tmp_path / "own", tmp_path / "out", start
    if case == "another language":
        own_images(data, texts=["Ein Hafen mit vielen Booten .", "Grüne Bäume am Ufer .", "港口里有很多船"])
    elif case not in ("empty", "no folder"):
        own_images(data, {"one image": 1, "two images": 2}.get(case, 30))
    if case == "empty":
        data.mkdir()
    elif case == "no captions":
        (data / "metadata.jsonl").write_text("\n")
    elif case == "broken":
        for image in data.glob("*.png"):
            image.write_bytes(b"no image")
    elif case == "splits":
        lines = [json.loads(line) for line in (data / "metadata.jsonl").read_text().splitlines()]
        splits = [{**line, "split": "dev" if line["file_name"] < "05" else "train"} for line in lines]
        (data / "metadata.jsonl").write_text("\n".join(map(json.dumps, splits)))
    elif case == "existing output":
        output.mkdir()
        (output / "thesis.txt").write_text("mine")
    elif case == "inside":
        output = data / "out"
    elif case == "no model":
        model = "nothing"
    elif case == "no space":
        monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1, 1, 0))
    elif case == "no eval":
        monkeypatch.setitem(sys.modules, "pycocoevalcap", None)
    code, out, err = rsmoe("train", data, "--output", output, "--model", model)
    (line,) = [line for line in err.splitlines() if line.startswith("rsmoe: error")]
    assert code == 2 and not out and said in line and "Traceback" not in err
    assert not output.exists() or [file.name for file in output.iterdir()] == ["thesis.txt"]
