"""Facts of a folder: read from its files, counted without weights, refused where they are wrong."""

import json
import shutil
from pathlib import Path

import pytest

from modeling_rsmoe import RSMoEError
from modeling_rsmoe.hub.facts import read_facts, read_texts
from modeling_rsmoe.hub.sources import HUB_CONFIGS
from modeling_rsmoe.training.memory import count_parameters, without_weights


SIZES = ["rs-moe-nano", "rs-moe-1b", "rs-moe-3b", "rs-moe-7b"]


@pytest.fixture
def folder(checkpoint, tmp_path) -> Path:
    return Path(shutil.copytree(checkpoint, tmp_path / "mine"))


def record(stage: str, before: dict | None = None, **changes) -> dict:
    recipe = {
        "vision": "frozen",
        "qformer": "queries",
        "projection": "full",
        "language_model": "lora",
        "router": "frozen",
    } | changes
    arguments = {"learning_rate": 5e-4, "max_steps": 100, "num_train_epochs": 3.0, "examples_per_step": 16}
    data = {"sha256": "d" * 64, "datasets": ["Ships"], "captioned_images": 1200, "questions": 0}
    made = {"stage": stage, "finished": True, "recipe": recipe, "arguments": arguments, "data": data}
    return made | {"start": {"name": "start", "sha256": "5" * 64}, "versions": {"torch": "2"}, "before": before}


@pytest.mark.parametrize("name", SIZES)
def test_parameters_are_those_of_the_estimate(name):
    """Two ways of counting; that of `rsmoe train estimate` is held against the published sizes."""
    facts = read_facts(name)
    counts = count_parameters(without_weights(facts.config))
    found = {module.name: module.parameters * module.count for module in facts.modules}
    assert found == dict(
        zip(["image encoder", "Q-Former", "projection", "base LM", "router", "experts", "reranker"], counts.values())
    )
    assert facts.parameters == sum(counts.values())
    assert facts.trained is (name == "rs-moe-nano") and facts.texts.missing == []


def test_nanos_steps_are_those_of_its_settings():
    facts = read_facts("rs-moe-nano")
    assert [(step.name, step.amount, step.batch, step.learning_rate) for step in facts.steps] == [
        ("alignment", "19,200 images", 32, 3e-4),
        ("stage 1", "38,400 examples", 16, 5e-4),
        ("encoder", "28,800 examples", 32, 5e-5),
        ("alignment, part 2", "6,400 images", 32, 3e-4),
        ("stage 1, part 2", "11,200 examples", 16, 5e-4),
        ("stage 1, part 3", "3,200 examples", 16, 1.5e-4),
        ("stage 2", "7,200 examples", 16, 5e-4),
        ("reranker", "10,403 images", None, None),
    ]
    assert facts.minutes == sum(facts.texts.training.minutes.values()) > 0


def test_a_training_record(folder):
    before = record("stage1", alignment_steps=10, alignment_batch_size=8, alignment_learning_rate=1e-3)
    last = record("stage2", before, qformer="frozen", projection="frozen", language_model="frozen", experts=["ships"])
    last["arguments"] |= {"max_steps": -1, "learning_rate": 1e-4}
    (folder / "training.json").write_text(json.dumps(last))
    facts = read_facts(folder)
    assert facts.trained and facts.texts.missing
    assert [(step.name, step.learned, step.amount, step.batch, step.learning_rate) for step in facts.steps] == [
        ("alignment", "queries, cross-attention, Q-Former", "80 images", 8, 1e-3),
        ("stage 1", "Q-Former, projection, LoRA on the base LM", "1,600 examples", 16, 5e-4),
        ("stage 2", "experts ships", "3 epochs", 16, 1e-4),
    ]
    # A stage in two parts, of which the first was stopped after 40 of 100 steps.
    (folder / "training.json").write_text(json.dumps(record("stage1", {**before, "finished": False, "steps": 40})))
    assert [(step.name, step.amount) for step in read_facts(folder).steps] == [
        ("alignment", "80 images"),
        ("stage 1", "640 examples"),
        ("stage 1, part 2", "1,600 examples"),
    ]
    (folder / "training.json").write_text(json.dumps(last | {"finished": False}))
    assert read_facts(folder).steps == () and "is not recorded" in read_facts(folder).unrecorded


def test_what_is_said_of_shipped_weights_is_not_said_of_others():
    for changes in ({"trained": False}, {"trained": True, "shipped": False}):
        facts = read_facts("rs-moe-nano", **changes)
        assert facts.texts.license == "Apache-2.0" and facts.base_models
        assert (facts.texts.training, facts.texts.limits, facts.steps) == (None, (), ())
    modules = read_facts("rs-moe-nano", source="hub").modules
    assert not any("wheel `" in module.origin or "wheel" in module.license for module in modules)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("limit: []", "unknown limit"),
        ("- a", "no mapping"),
        ("a: b: c", "cannot be read"),
        ("training: {minutes: {}}", "machine"),
        ("training: {machine: m, data: [{name: a}]}", "url"),
        ("training: 5", "is not what"),
    ],
)
def test_wrong_card_facts(tmp_path, text, message):
    (tmp_path / "card.yaml").write_text(text)
    with pytest.raises(RSMoEError, match=message):
        read_texts(tmp_path / "card.yaml")


def test_wrong_folders(folder, tmp_path):
    with pytest.raises(RSMoEError, match="neither a checkpoint's folder .* nor one of rs-moe-1b"):
        read_facts("rs-moe-9b")
    (folder / "training.json").write_text("{")
    with pytest.raises(RSMoEError, match="training.json cannot be read"):
        read_facts(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(RSMoEError, match="settings in .* cannot be read"):
        read_facts(folder)
    assert (HUB_CONFIGS / "rs-moe-nano" / "card.yaml").is_file()
