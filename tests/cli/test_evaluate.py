"""`rsmoe evaluate`: one command from a data folder to a report, and bad input refused before the model is loaded."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from modeling_rsmoe.data.cleaning import clean_caption
from modeling_rsmoe.evaluation.markdown import score_tables
from modeling_rsmoe.evaluation.report import read_report
from modeling_rsmoe.inference import Predictor
from modeling_rsmoe.inference.checkpoint import load
from modeling_rsmoe.utils.provenance import folder_sha256, weights_sha256
from tests.cli.test_cli import errors, run
from tests.tiny import tiny_checkpoint


SHORT = ("--max-new-tokens", 6)
CAPTIONS = ["a wide river .", "many <b>green</b> trees .", "a road crosses a river .", "a white plane ."]


pytestmark = pytest.mark.usefixtures("without_java")


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Image features stay in the test's folder."""
    monkeypatch.setenv("RSMOE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder, draw = tmp_path / "data", np.random.default_rng(0)
    folder.mkdir()
    captions, questions = [], []
    for index, caption in enumerate(CAPTIONS):
        Image.fromarray(draw.integers(0, 255, (30, 30, 3), np.uint8)).save(folder / f"{index}.png")
        of = {"image": f"{index}.png", "split": "train" if index == 0 else "test"}
        captions.append({**of, "dataset": "Tiny", "captions": [caption, "an aerial image ."]})
        asked = {"question": "Is there a river?", "question_type": "presence", "answer": "yes"}
        questions += [{**of, "dataset": name, **asked} for name in ("LR", "HR")]
    write(folder / "captions.jsonl", captions)
    write(folder / "vqa.jsonl", questions)
    return folder


def write(file: Path, lines: list[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "modeling_rsmoe.inference.checkpoint.load", lambda *arguments, **options: pytest.fail("the model was loaded")
    )


def test_captions_of_the_full_model(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    output, page = tmp_path / "new" / "report.json", tmp_path / "page.html"
    arguments = ("evaluate", checkpoint, "--data", data, "--output", output, *SHORT, "--page", page)
    result = run(*arguments)
    assert result.exit_code == 0, result.stderr
    assert all(word in result.stdout for word in ("Tiny, test (3 images)", "CIDEr-D", "95 % interval", "relation"))
    assert "METEOR is missing: " in result.stdout and str(output) in result.stdout
    report = read_report(output)
    assert report["system"] == "full" and report["checkpoint"]["name"] == "tiny"
    assert report["settings"] == {"max_new_tokens": 6, "fusion": "rewrite", "dtype": "float32"}
    found = report["results"][0]
    assert list(found["expert_texts"]) == ["theme", "object", "relation"]
    assert list(found["baselines"]) == ["nearest", "constant"] and found["references_in_train"] == 50.0
    assert [(other["name"], other["differences"][0]["items"]) for other in report["against"]] == [("nearest", 3)]
    assert found["scores"]["CIDEr-D"]["value"] < 5 < found["baselines"]["constant"]["BLEU-1"]["value"]
    assert report["seconds"] == pytest.approx(3 * found["seconds_per_image"]) and report["peak_memory_bytes"] > 1e7
    settings, *lines = [json.loads(line) for line in output.with_suffix(".jsonl").read_text().splitlines()]
    used = {"system": "full", "max_new_tokens": 6, "fusion": "rewrite", "dtype": "float32"}
    assert settings == {"settings": {"checkpoint": folder_sha256(checkpoint), **used}}
    assert report["checkpoint"]["sha256"] == weights_sha256(checkpoint)
    assert [line["image"] for line in lines] == ["1.png", "2.png", "3.png"] and all(
        "caption" in line for line in lines
    )
    text = page.read_text()
    assert "Differences, with paired intervals" in text and "captions of the most similar training images" in text
    assert "50.0 % of the references stand word for word in the train split." in text and "50.0 %" in result.stdout
    assert "many &lt;b&gt;green&lt;/b&gt; trees" in text and "data:image/jpeg;base64," in text and "://" not in text


@pytest.mark.slow
def test_a_second_run_makes_the_same_report_without_the_model(
    checkpoint: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "report.json"
    arguments = (
        "evaluate",
        checkpoint,
        "--data",
        data,
        "--output",
        output,
        "--task",
        "vqa",
        "--system",
        "base",
        *SHORT,
    )
    assert run(*arguments).exit_code == 0
    first = output.read_text()
    with monkeypatch.context() as patch:
        patch.setattr(
            "modeling_rsmoe.inference.checkpoint.load", lambda *ignored, **options: pytest.fail("the model was loaded")
        )
        assert run(*arguments).exit_code == 0
    assert output.read_text() == first
    # Killed after one line: the rest is predicted again, and says the same.
    predictions = output.with_suffix(".jsonl")
    predictions.write_text("".join(predictions.read_text().splitlines(keepends=True)[:2]) + '{"image": "2')
    assert run(*arguments, "--batch-size", 1).exit_code == 0
    again, before = json.loads(output.read_text()), json.loads(first)
    scores = [[(each["dataset"], each["sha256"], each["scores"]) for each in of["results"]] for of in (before, again)]
    assert scores[0] == scores[1] and [each[0] for each in scores[0]] == ["LR", "HR", "all"]


def test_retrieval_is_what_the_reranker_likes_best(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of all training captions, by the reranker's own scores; a second run reads what was written."""
    folder, output = tiny_checkpoint(tmp_path / "ranked", reranker_rank=4, reranker_buckets=32), tmp_path / "r.json"
    with (data / "captions.jsonl").open("a") as file:
        for index, text in enumerate(["a gray bridge .", "a wide  river .", "a port with boats ."]):
            Image.new("RGB", (30, 30), (90 * index, 0, 0)).save(data / f"t{index}.png")
            line = {"image": f"t{index}.png", "split": "train", "dataset": "Other", "captions": [text]}
            file.write(json.dumps(line) + "\n")
    arguments = ("evaluate", folder, "--data", data, "--baseline", "retrieval", "--output", output)
    assert run(*arguments).exit_code == 0
    report = read_report(output)
    assert report["system"] == "retrieval" and report["checkpoint"]["sha256"] == weights_sha256(folder)
    found = [json.loads(line) for line in output.with_suffix(".jsonl").read_text().splitlines()[1:]]

    loaded = load(str(folder))
    known = ["a wide river .", "an aerial image .", "a gray bridge .", "a port with boats ."]
    ids = loaded.processor.tokenizer([f" {clean_caption(text)}" for text in known], add_special_tokens=False)
    with torch.inference_mode():
        embeds = Predictor(loaded.model, loaded.processor).encode([data / line["image"] for line in found])
        scores = loaded.model.model.reranker(embeds, [ids["input_ids"]] * len(found))
    assert [line["caption"] for line in found] == [known[int(of_image.argmax())] for of_image in scores]

    monkeypatch.setattr("modeling_rsmoe.inference.checkpoint.load", lambda *ignored, **more: pytest.fail("loaded"))
    output.unlink()
    assert run(*arguments).exit_code == 0 and read_report(output)["results"] == report["results"]


def test_lookups_that_cannot_be(checkpoint: Path, data: Path, tmp_path: Path, no_model: None) -> None:
    def refused(*arguments: Any) -> str:
        (message,) = errors(run("evaluate", *arguments, "--data", data, "--output", tmp_path / "report.json"))
        return message

    assert "retrieval is by a reranker, and " in refused(checkpoint, "--baseline", "retrieval")
    own = 'nearest would find each image\'s own caption in split "train"; score another split'
    assert own in refused(checkpoint, "--baseline", "nearest", "--split", "train")
    assert "nearest looks up captions; give --task captioning" in refused(
        checkpoint, "--baseline", "nearest", "--task", "vqa"
    )
    assert "--baseline retrieval is of a checkpoint; give a MODEL" in refused("--baseline", "retrieval")
    lines = (data / "captions.jsonl").read_text().splitlines(keepends=True)
    (data / "captions.jsonl").write_text("".join(lines[1:]))
    assert "nearest takes captions of the train split, and " in refused(checkpoint, "--baseline", "nearest")


def test_predictions_of_other_settings_are_not_mixed(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    arguments = ("evaluate", checkpoint, "--data", data, "--output", tmp_path / "report.json", "--system", "base")
    assert run(*arguments, *SHORT).exit_code == 0
    (message,) = errors(run(*arguments, "--max-new-tokens", 5))
    assert "report.jsonl is a run with other settings (max_new_tokens: 6, now 5)" in message


@pytest.mark.slow
@pytest.mark.parametrize("task, score", [("captioning", "CIDEr-D"), ("vqa", "accuracy")])
def test_difference_from_another_system(task: str, score: str, data: Path, tmp_path: Path, no_model: None) -> None:
    """Right answers against wrong ones; a system against itself is 0 everywhere; the table is printed."""
    name = "caption" if task == "captioning" else "answer"
    files = {
        "right": ["many green trees .", "a road crosses a river .", "a white plane ."],
        "wrong": ["no", "no", "no"],
    }
    if task == "vqa":
        files["right"] = ["yes"] * 3
    for file, texts in files.items():
        asked = {"question": "Is there a river?"} if task == "vqa" else {}
        lines = [{"image": f"{i}.png", **asked, name: text} for i, text in enumerate(texts, start=1)]
        write(tmp_path / f"{file}.jsonl", lines)
    found = {}
    for other in files:
        output = tmp_path / f"{other}.json"
        arguments = [
            "--task",
            task,
            "--predictions",
            tmp_path / "right.jsonl",
            "--against",
            tmp_path / f"{other}.jsonl",
        ]
        result = run("evaluate", "--data", data, "--output", output, *arguments)
        assert result.exit_code == 0, result.stderr
        assert f"minus {other}" in result.stdout
        report = read_report(output)
        (against,) = report["against"]
        assert against["name"] == other
        found[other] = against["differences"][-1]["scores"][score]
        assert f"| {other} | " in score_tables([report])
    datasets = [difference["dataset"] for difference in against["differences"]]
    assert datasets == (["Tiny"] if task == "captioning" else ["LR", "HR", "all"])
    assert found["right"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert found["wrong"]["value"] > 50 and found["wrong"]["low"] > 0


@pytest.mark.parametrize("task, baseline", [("captioning", "constant"), ("vqa", "constant"), ("vqa", "question-only")])
def test_baselines_need_no_model(task: str, baseline: str, data: Path, tmp_path: Path, no_model: None) -> None:
    output, page = tmp_path / "report.json", tmp_path / "page.html"
    arguments = ("--data", data, "--output", output, "--task", task, "--baseline", baseline, "--page", page)
    result = run("evaluate", *arguments, "--markdown")
    assert result.exit_code == 0 and result.stdout.startswith("**") and "| --- |" in result.stdout
    report = read_report(output)
    assert (report["system"], report["checkpoint"]) == (baseline, None)
    found = report["results"][0]
    assert found["scores"] == found["baselines"][baseline] and "seconds_per_image" not in found
    assert "1.png" in page.read_text()
    assert not output.with_suffix(".jsonl").exists()


def test_without_the_image_every_caption_is_the_same(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    output = tmp_path / "report.json"
    arguments = ("evaluate", checkpoint, "--data", data, "--output", output, "--baseline", "no-image", *SHORT)
    assert run(*arguments).exit_code == 0
    _, *lines = [json.loads(line) for line in output.with_suffix(".jsonl").read_text().splitlines()]
    assert len(lines) == 3 and len({line["caption"] for line in lines}) == 1
    report = read_report(output)
    assert report["system"] == "full, no image" and "expert_texts" not in report["results"][0]


def test_predictions_of_another_model(data: Path, tmp_path: Path, no_model: None) -> None:
    theirs, output = tmp_path / "theirs.jsonl", tmp_path / "report.json"
    write(theirs, [{"image": f"{index}.png", "caption": CAPTIONS[index]} for index in (1, 2, 3)])
    arguments = ("evaluate", "--data", data, "--output", output, "--predictions", theirs)
    assert run(*arguments, "--page", tmp_path / "page.html").exit_code == 0
    scores = read_report(output)["results"][0]["scores"]
    assert scores["BLEU-4"]["value"] == pytest.approx(100, abs=0.01)
    write(theirs, [{"image": "1.png", "caption": CAPTIONS[1]}])
    assert "no prediction for 2.png (2 of 3 are missing)" in errors(run(*arguments))[0]
    assert "no file" in errors(run(*arguments[:-1], tmp_path / "none.jsonl"))[0]


def test_bad_input_is_refused_before_the_model_is_loaded(
    checkpoint: Path, data: Path, tmp_path: Path, no_model: None
) -> None:
    def refused(*more: Any, task: str = "captioning") -> str:
        output = tmp_path / "report.json"
        result = run("evaluate", checkpoint, "--data", data, "--output", output, "--task", task, *more)
        assert not output.exists() and not output.with_suffix(".jsonl").exists()
        return " ".join(errors(result))

    assert 'unknown split "tset"' in refused("--split", "tset")
    assert "none.jsonl; give --against the predictions" in refused("--against", tmp_path / "none.jsonl")
    assert 'unknown dataset "LR"' in refused("--dataset", "LR")
    assert 'unknown dataset "Tiny"' in refused("--dataset", "Tiny", task="vqa")
    assert "nothing to evaluate" in errors(run("evaluate", "--data", data, "--output", tmp_path / "r.json"))[0]
    assert "is a folder" in errors(run("evaluate", checkpoint, "--data", data, "--output", data))[0]
    assert (
        "no checkpoint"
        in errors(run("evaluate", "no-such-model", "--data", data, "--output", tmp_path / "report.json"))[0]
    )
    lines = (data / "captions.jsonl").read_text()
    (data / "captions.jsonl").write_text(lines + lines.splitlines()[-1] + "\n")
    assert 'image "3.png" stands 2 times' in refused()
    (data / "captions.jsonl").write_text(lines + lines.splitlines()[-1].replace("test", "train") + "\n")
    assert '"3.png" of Tiny stands in split "test" and in "train"' in refused()
    (data / "captions.jsonl").write_text(lines.replace('["a white plane .", "an aerial image ."]', "[]"))
    assert 'captions.jsonl:4: "captions" is []' in refused()
    (data / "captions.jsonl").write_text(lines)
    (data / "2.png").write_bytes(b"no image")
    assert "2.png" in refused()
    (data / "2.png").unlink()
    assert "2.png is missing" in refused()


def test_other_file_of_questions(data: Path, tmp_path: Path, no_model: None) -> None:
    (data / "vqa.jsonl").rename(data / "derived.jsonl")
    arguments = (
        "evaluate",
        "--data",
        data,
        "--output",
        tmp_path / "report.json",
        "--task",
        "vqa",
        "--baseline",
        "constant",
    )
    assert "vqa.jsonl is missing (.jsonl files there: captions.jsonl, derived.jsonl)" in errors(run(*arguments))[0]
    assert run(*arguments, "--questions", "derived.jsonl").exit_code == 0


def test_unknown_expert(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    arguments = (
        "evaluate",
        checkpoint,
        "--data",
        data,
        "--output",
        tmp_path / "report.json",
        "--system",
        "experts:sea",
    )
    assert "known: full, full:NAME,NAME, base, experts:theme" in errors(run(*arguments))[0]
