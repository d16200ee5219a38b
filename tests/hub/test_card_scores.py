"""Scores in a model card: what is written where, what stays as it was, what is refused."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard, parse_eval_result_entries

from modeling_rsmoe.errors_rsmoe import RSMoEError
from modeling_rsmoe.hub.card_scores import write_scores


CARD = """\
---
# A comment that stays.
license:   apache-2.0
tags: [remote-sensing, "a: b"]
---

# tiny

Before.

<!-- scores -->
<!-- /scores -->

After.
"""
SCORES = {"BLEU-4": 27.0012, "CIDEr-D": 153.8449, "CIDEr": 160.0, "distinct": 50.0}


def report(
    task: str = "captioning", system: str = "full", checkpoint: str | None = "out/tiny", **result: Any
) -> dict[str, Any]:
    scores = result.pop("scores", SCORES)
    entries = {name: {"value": value, "low": value, "high": value} for name, value in scores.items()}
    values = {"dataset": "RSICD", "split": "test", "limit": None, "items": 360, "scores": entries}
    return {
        "task": task,
        "system": system,
        "checkpoint": checkpoint and {"name": checkpoint, "sha256": checkpoint},
        "results": [values | result],
    }


@pytest.fixture
def card(tmp_path: Path) -> Path:
    file = tmp_path / "README.md"
    file.write_text(CARD)
    return file


def indexed(card: Path) -> dict[tuple[str, ...], float]:
    """The scores of a card's model-index as the Hub's client reads them."""
    data = ModelCard.load(card).data
    return {
        (one.task_type, one.dataset_type, one.dataset_name, one.dataset_split, one.metric_type, one.metric_name): (
            one.metric_value
        )
        for one in data.eval_results
    }


def test_scores_go_into_the_model_index_and_the_table(card: Path) -> None:
    vqa = {"accuracy": 70.0, "average": 65.5, "accuracy: count": 50.0, "exact": 60.0}
    reports = [report("vqa", dataset="RSVQA-LR", split=split, scores=vqa) for split in ("test_phili", "val")]
    write_scores(card, [report(), *reports], "| table |\n")
    assert indexed(card) == {  # the headline scores of test splits
        ("image-to-text", "rsicd", "RSICD", "test", "cider", "CIDEr-D"): 153.84,
        ("visual-question-answering", "rsvqa-lr", "RSVQA-LR", "test_phili", "accuracy", "accuracy"): 70.0,
    }
    assert ModelCard.load(card).data.model_name == "tiny"
    front, body = card.read_text().split("model-index:")[0], card.read_text().split("\n---\n")[1]
    assert front == CARD.split("\n---\n")[0] + "\n"
    assert body == CARD.split("\n---\n")[1].replace("<!-- scores -->\n", "<!-- scores -->\n\n| table |\n\n")


def test_writing_again_changes_nothing_and_other_scores_replace_the_old(card: Path) -> None:
    (card.parent / "docs.md").write_text("<!-- scores -->\nold\n<!-- /scores -->")
    files = (card, card.parent / "docs.md")
    first = write_scores(card, [report()], "table", [files[1]])
    assert first[:2] == [f"{files[0]}: written", f"{files[1]}: written"]
    before = [(file.read_bytes(), file.stat().st_mtime_ns) for file in files]
    assert write_scores(card, [report()], "table", [files[1]])[:2] == [f"{file}: unchanged" for file in files]
    assert [(file.read_bytes(), file.stat().st_mtime_ns) for file in files] == before

    # A key below the model-index, as another tool may have left it.
    card.write_text(card.read_text().replace("\n---\n", "\nwidget:\n- text: a\n---\n", 1))
    write_scores(card, [report(dataset="UCM-Captions", scores={"CIDEr-D": 30.0})], "other")
    assert list(indexed(card).values()) == [30.0]
    assert ModelCard.load(card).data.get("widget") == [{"text": "a"}]
    assert "table" not in card.read_text() and card.read_text().count("other") == 1


def test_only_what_the_model_itself_scored_is_indexed(card: Path) -> None:
    """Not its parts, its baselines or pooled datasets; the base LM alone only where the full model was not run."""
    reports = [
        report(system="base", scores={"CIDEr-D": 200.0}),
        report(system="full", scores={"CIDEr-D": 150.0}),
        report(system="base", dataset="UCM-Captions", scores={"CIDEr-D": 180.0}),
        report(system="experts:theme", dataset="A"),
        report(system="full, no image", dataset="B"),
        report(system="constant", checkpoint=None, dataset="C"),
        report(dataset="all"),
    ]
    limited = report(dataset="NWPU-Captions", limit=20)
    lines = write_scores(card, [*reports, limited], "table")
    found = {(name[2], name[5]): value for name, value in indexed(card).items()}
    assert found == {("RSICD", "CIDEr-D"): 150.0, ("UCM-Captions", "CIDEr-D (base LM alone)"): 180.0}
    assert "not in the model-index: NWPU-Captions test, which was limited to 20 items" in lines


def test_entries_are_for_whole_test_sets_of_registered_benchmarks(card: Path) -> None:
    reports = [
        report(),
        report(split="val"),
        report(dataset="UCM-Captions"),
        report(dataset="NWPU-Captions", limit=20),
        report("vqa", dataset="RSVQA-LR", scores={"exact": 60.0}),
    ]
    named = {"RSICD": "owner/rsicd:captions", "NWPU-Captions": "owner/nwpu", "RSVQA-LR": "owner/lr"}
    lines = write_scores(card, reports, "table", benchmarks=named)
    file = card.parent / ".eval_results" / "rsmoe.yaml"
    (entry,) = parse_eval_result_entries(yaml.safe_load(file.read_text()))
    assert (entry.dataset_id, entry.task_id, entry.value) == ("owner/rsicd", "captions", 153.84)
    assert entry.notes == "CIDEr-D, full, test, 360 items"
    assert f"{file}: written, 1 entry" in lines
    reasons = [line.partition(" for ")[2] for line in lines if line.startswith("no entry")]
    assert reasons == [
        "RSICD val: leaderboards are for whole test sets",
        'UCM-Captions test: no benchmark on the Hub is known for "UCM-Captions"',
        "NWPU-Captions test: leaderboards are for whole test sets",
        "RSVQA-LR test: the report has no accuracy",
    ]
    assert f"{file}: unchanged, 1 entry" in write_scores(card, reports, "table", benchmarks=named)
    assert f"{file}: removed, without entries" in write_scores(card, reports, "table")
    assert not file.exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (CARD.replace("<!-- /scores -->", ""), "write a line <!-- scores -->"),
        (CARD + CARD.partition("Before.")[2], "once each"),
        (CARD.partition("\n---\n")[2], "no front matter"),
        (CARD.replace("license:", "license: ]"), "no metadata of a model card"),
        (CARD.replace("license:", "model-index: []\nmodel-index: []\nlicense:"), "two of them"),
    ],
)
def test_a_card_without_a_place_for_scores_is_refused_and_left_alone(card: Path, text: str, message: str) -> None:
    card.write_text(text)
    with pytest.raises(RSMoEError, match=message):
        write_scores(card, [report()], "table", benchmarks={"RSICD": "owner/rsicd"})
    assert card.read_text() == text and [path.name for path in card.parent.iterdir()] == ["README.md"]


@pytest.mark.parametrize(
    ("reports", "benchmarks", "message"),
    [
        ([report(checkpoint=None)], {}, "scores of one checkpoint, these reports have: none"),
        ([report(), report(checkpoint="other")], {}, "one checkpoint"),
        ([report(), report(scores={"CIDEr-D": 1.0})], {}, "two reports have different scores of full on RSICD test"),
        ([report()], {"RSVQA": "owner/rsvqa"}, 'no report has the dataset "RSVQA"; known: RSICD'),
        ([report()], {"RSICD": "rsicd"}, "write OWNER/DATASET"),
        ([report()], {"RSICD": "a b/c"}, "write OWNER/DATASET"),
    ],
)
def test_wrong_reports_and_benchmarks_are_refused(
    card: Path, reports: list[dict[str, Any]], benchmarks: dict[str, str], message: str
) -> None:
    with pytest.raises(RSMoEError, match=message):
        write_scores(card, reports, "table", benchmarks=benchmarks)
    assert card.read_text() == CARD


def test_a_folder_is_its_readme(card: Path) -> None:
    write_scores(card.parent, [report()], "table")
    assert "table" in card.read_text()
    with pytest.raises(RSMoEError, match="there is no file"):
        write_scores(card.parent / "other.md", [report()], "table")
