"""The whole card: what it says of trained, untrained and unknown checkpoints, and what it never replaces."""

import json
import shutil
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from huggingface_hub.utils import validate_repo_id

from modeling_rsmoe import RSMoEError
from modeling_rsmoe.hub.card import MARK, card_text, write_card
from modeling_rsmoe.hub.card_scores import hub_scores
from modeling_rsmoe.hub.facts import read_facts

from .test_card_scores import report
from .test_facts import record


@pytest.fixture
def folder(checkpoint, tmp_path) -> Path:
    """A checkpoint that a training made, with a README.md that somebody wrote."""
    folder = Path(shutil.copytree(checkpoint, tmp_path / "mine"))
    (folder / "training.json").write_text(json.dumps(record("stage2", record("stage1"), experts=["all"])))
    return folder


def sections(text: str) -> list[str]:
    return [line.removeprefix("## ") for line in text.splitlines() if line.startswith("## ")]


def test_nanos_metadata():
    facts, scores = read_facts("rs-moe-nano"), hub_scores([report()])
    data = ModelCard(card_text(facts, scores, "| short |")).data
    assert (data.library_name, data.pipeline_tag, data.license) == ("transformers", "image-text-to-text", "apache-2.0")
    assert data.get("module_licenses")["image encoder"] == "MIT (wheel), Apache-2.0 (model)"
    assert data.get("module_licenses").keys() == {module.name for module in facts.modules}
    for model in data.base_model:
        validate_repo_id(model)
    questions, labels = ["rsvqa-lr", "rsvqa-hr", "rsivqa-ucm"], ["aid-multilabel", "ucm-multilabel", "eurosat"]
    assert data.datasets == ["rsicd", "ucm-captions", *questions, *labels] and data.language == "en"
    assert data.metrics == ["cider"] and data.model_name == "rs-moe-nano"
    assert [one.metric_value for one in data.eval_results] == [153.84]


def test_sections():
    trained = card_text(read_facts("rs-moe-nano"), hub_scores([report()]), "| short |")
    assert sections(trained) == [
        "Use",
        "Scores",
        "Limits",
        "Bias and risks",
        "How it works",
        "Modules",
        "Training",
        "Licence",
        "Paper",
    ]
    assert trained.index("## Scores") < trained.index("| short |") < trained.index("## Limits")
    start = card_text(read_facts("rs-moe-1b"))
    assert sections(start) == sections(trained) and "```python" not in start
    assert "**Not a trained model.**" in start and "No scores exist." in start and "model-index" not in start
    for text in (trained, start):
        assert "None" not in text.replace("None yet", "").replace("None: nothing", "") and "{{" not in text
        assert "](docs/" not in text  # the card stands alone in a repository


def test_a_training_of_ones_own(folder):
    """Facts of training.json; what nobody wrote down is left out and named."""
    lines = write_card(read_facts(folder), folder)
    assert lines == [
        f"{folder / 'README.md'}: written",
        "the card does not say: license, summary, intended_use, limits, risks; write " + str(folder / "card.yaml"),
    ]
    text = (folder / "README.md").read_text()
    assert sections(text) == ["Use", "Scores", "How it works", "Modules", "Training", "Licence", "Paper"]
    assert (
        "questions, each counted as often as it was drawn from, of Ships (sha256 dddddddddddd), beginning at" in text
    )
    assert "| stage 2 |" in text and 'from_pretrained("mine"' in text and "Not evaluated" in text
    assert "minutes" not in text and "rsmoe assemble" not in text
    (folder / "card.yaml").write_text("license: MIT\nlimits: [It sees ships only.]\n")
    assert write_card(read_facts(folder), folder)[1].startswith("the card does not say: summary, intended_use, risks;")
    card = ModelCard.load(folder / "README.md")
    assert card.data.datasets == ["ships"] and card.data.base_model is None
    assert card.data.license == "mit" and "## Limits\n\n- It sees ships only.\n" in card.text
    before = (folder / "README.md").stat().st_mtime_ns
    assert write_card(read_facts(folder), folder)[0].endswith(": unchanged")
    assert (folder / "README.md").stat().st_mtime_ns == before


def test_a_picture_that_is_there_and_described(folder):
    (folder / "card.yaml").write_text("picture: A harbor and what each expert says of it.\n")
    assert "![" not in card_text(read_facts(folder))
    (folder / "picture.png").write_bytes(b"")
    assert "![A harbor and what each expert says of it.](picture.png)" in card_text(read_facts(folder))
    (folder / "card.yaml").unlink()
    assert "![" not in card_text(read_facts(folder))


def test_a_link_to_a_card_stays_one(folder):
    write_card(read_facts(folder), folder / "other.md")
    (folder / "link.md").symlink_to("other.md")
    (folder / "card.yaml").write_text("license: MIT\n")
    write_card(read_facts(folder), folder / "link.md")
    assert (folder / "link.md").is_symlink() and "license: mit" in (folder / "other.md").read_text()


def test_a_card_by_hand_is_not_replaced(folder):
    (folder / "README.md").write_text("# Mine\n")
    with pytest.raises(RSMoEError, match="was not written by `rsmoe card`, so it is not replaced"):
        write_card(read_facts(folder), folder)
    assert (folder / "README.md").read_text() == "# Mine\n"
    write_card(read_facts(folder), folder / "other.md")
    assert MARK in (folder / "other.md").read_text()


def test_an_untrained_checkpoint_has_no_scores():
    with pytest.raises(RSMoEError, match="rs-moe-1b is the start of a training, so it has no scores"):
        card_text(read_facts("rs-moe-1b"), hub_scores([report()]))
