"""Fitting the confidence to predictions whose objects and answers are known."""

import json

import pytest
import torch
from safetensors.torch import load_file

from modeling_rsmoe import RSMoEError, RSMoEForConditionalGeneration, RSMoEProcessor
from modeling_rsmoe.inference import Predictor
from modeling_rsmoe.training.confidence import train_confidence
from modeling_rsmoe.training.reranker import train_reranker
from modeling_rsmoe.utils.images import read_image

from .test_reranker import labelled, shades  # noqa: F401  (fixtures)


pytestmark = pytest.mark.slow
TREES, PLANES = "many green trees", "two planes"


@pytest.fixture(scope="module")
def fitted(labelled, start, features, tmp_path_factory):  # noqa: F811
    output = tmp_path_factory.mktemp("fitted") / "out"
    return train_reranker(labelled, output, start, rank=6, buckets=512, features=features)


@pytest.fixture(scope="module")
def files(labelled, tmp_path_factory):  # noqa: F811
    """Captions of which half are right (dark images have trees, bright ones planes), and answers of which half are."""
    folder = tmp_path_factory.mktemp("predictions")
    captions, answers, questions = [], [], []
    for i in range(34):
        entry = {"image": f"{i}.png", "dataset": "Tiny", "split": "val"}
        captions.append({**entry, "caption": TREES, "expert_texts": {"theme": PLANES, "object": "nothing known"}})
        asked = {**entry, "question": "Are there trees?"}
        questions.append({**asked, "question_type": "presence", "answer": "no" if i % 2 else "yes"})
        answers.append({**asked, "answer": "yes"})
    (labelled / "vqa.jsonl").write_text("".join(json.dumps(line) + "\n" for line in questions))
    for name, lines in (("captions", captions), ("answers", answers)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder / "captions.jsonl", folder / "answers.jsonl"


def test_the_right_ones_are_surer(labelled, fitted, files, features, tmp_path):  # noqa: F811
    worth = train_confidence(labelled, tmp_path / "out", fitted, files, features=features)
    assert worth["statement"]["texts"] == 68 and worth["statement"]["right"] == 50  # one text has no known object
    assert worth["statement"]["auroc"] > 99 and worth["statement"]["calibration_error"] < 5
    assert worth["answer"] == {**worth["answer"], "texts": 34, "right": 50}
    model, processor = (
        kind.from_pretrained(tmp_path / "out") for kind in (RSMoEForConditionalGeneration, RSMoEProcessor)
    )
    assert set(model.config.confidence_weights) == {"statement", "answer"}
    before = load_file(fitted / "model.safetensors")
    assert all(
        torch.equal(value, before[name]) for name, value in load_file(tmp_path / "out" / "model.safetensors").items()
    )
    record = json.loads((tmp_path / "out" / "training.json").read_text())
    assert record["confidence"]["held_out"] == worth and record["reranker"]["rank"] == 6
    assert not (tmp_path / "out" / ".training").exists()
    embeds = Predictor(model, processor).encode([read_image(labelled / f"{i}.png") for i in range(2)])
    ids = processor.tokenizer([f" {TREES}", f" {PLANES}"], add_special_tokens=False)["input_ids"]
    of_dark, of_bright = (model._of_statements(embeds[i : i + 1], ids).tolist() for i in range(2))
    assert min(of_dark[0], of_bright[1]) > 0.9 and max(of_dark[1], of_bright[0]) < 0.1


def test_a_training_forgets_it(labelled, fitted, files, features, tmp_path):  # noqa: F811
    """Other weights write other texts; captions alone leave answers without a confidence."""
    train_confidence(labelled, tmp_path / "out", fitted, files[:1], features=features)
    assert set(json.loads((tmp_path / "out" / "config.json").read_text())["confidence_weights"]) == {"statement"}
    again = train_reranker(labelled, tmp_path / "again", tmp_path / "out", rank=6, buckets=512, features=features)
    assert not json.loads((again / "config.json").read_text()).get("confidence_weights")


def test_what_cannot_be_fitted_is_told(labelled, start, fitted, files, features, tmp_path):  # noqa: F811
    lines = files[0].read_text()
    learned, few, other = tmp_path / "learned.jsonl", tmp_path / "few.jsonl", tmp_path / "other.jsonl"
    learned.write_text(lines.replace('"val"', '"train"'))
    few.write_text("".join(lines.splitlines(keepends=True)[:9]))
    other.write_text('{"image": "other.png", "caption": "trees"}\n')
    for file, problem in (
        (learned, "0.png is of split train, which a model remembers"),
        (few, r"9 of 18 texts \(statement\) are right; a confidence needs 10 right and 10 wrong ones"),
        (other, "no prediction has labels in"),
    ):
        with pytest.raises(RSMoEError, match=problem):
            train_confidence(labelled, tmp_path / "out", fitted, [file], features=features)
    with pytest.raises(RSMoEError, match="has no reranker that knows objects"):
        train_confidence(labelled, tmp_path / "out", start, files, features=features)
    assert not (tmp_path / "out").exists()
