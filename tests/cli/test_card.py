"""`rsmoe card`: from report files to a card."""

import json
import shutil
import sys
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from typer.testing import CliRunner, Result

from modeling_rsmoe.cli import app
from modeling_rsmoe.evaluation import report
from modeling_rsmoe.evaluation.scores import Score, Scored

from ..hub.test_facts import record as training


MARKS = "<!-- scores -->\n<!-- /scores -->\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A card, another page with marks, and a folder with a report of each task."""
    from PIL import Image

    from modeling_rsmoe.data.records import CaptionRecord, QuestionRecord

    (tmp_path / "README.md").write_text(f"---\nlicense: mit\n---\n{MARKS}")
    (tmp_path / "scores.md").write_text(MARKS)
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    caption = CaptionRecord(tmp_path / "a.png", "RSICD", "test", ("A road .",))
    question = QuestionRecord(tmp_path / "a.png", "RSVQA-LR", "test", "Is there a road?", "presence", "yes")
    checkpoint: report.CheckpointEntry = {"name": "tiny", "sha256": "0" * 64}
    for task, record, name, value in (
        ("captioning", caption, "CIDEr-D", 150.0),
        ("vqa", question, "accuracy", 70.0),
    ):
        result = report.make_result(
            [record],
            tmp_path,
            Scored({name: Score(value, value - 1, value + 1)}, [{}]),
            dataset=record.dataset,
            split="test",
            limit=None,
            baselines={},
            seconds=1.0,
        )
        made = report.make_report(
            task, "full", checkpoint, {}, [result], machine="cpu", seconds=1, peak_memory_bytes=1
        )
        report.write_report(made, tmp_path / "reports" / f"{task}.json")
    return tmp_path


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["card", *map(str, arguments)], catch_exceptions=False, prog_name="rsmoe")


def test_scores_of_a_folder_of_reports(folder: Path) -> None:
    arguments = (folder / "README.md", "--scores", folder / "reports", "--table", folder / "scores.md")
    result = run(*arguments, "--benchmark", "RSICD=owner/rsicd")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.splitlines() == [
        f"{folder / 'README.md'}: written",
        f"{folder / 'scores.md'}: written",
        f"{folder / '.eval_results' / 'rsmoe.yaml'}: written, 1 entry",
        'no entry in .eval_results/rsmoe.yaml for RSVQA-LR test: no benchmark on the Hub is known for "RSVQA-LR"',
    ]
    for name in ("README.md", "scores.md"):
        text = (folder / name).read_text()
        assert "**RSICD, test (1 image)**" in text and "150.0 [149.0, 151.0]" in text
        assert "**RSVQA-LR, test (1 question about 1 image)**" in text and "70.0 [69.0, 71.0]" in text
    assert [one.metric_value for one in ModelCard.load(folder / "README.md").data.eval_results] == [150.0, 70.0]
    assert "README.md: unchanged" in run(*arguments).stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("README.md",), "give --scores with reports"),
        (("README.md", "--scores", "reports", "--output", "a.md"), "neither --output nor --stac"),
        (("rs-moe-1b", "--scores", "reports"), "the start of a training, so it has no scores"),
        (("rs-moe-1b", "--table", "scores.md"), "give --scores with reports"),
        (("rs-moe-9b",), "rs-moe-9b is neither a checkpoint's folder (with config.json) nor one of rs-moe-1b,"),
        (("rs-moe-nano", "--scores", "reports", "--output", "README.md"), "was not written by `rsmoe card`"),
        (
            ("rs-moe-nano", "--scores", "reports", "--output", "a.md", "--table", "missing.md"),
            "there is no file missing.md",
        ),
        (("README.md", "--scores", "README.md"), "is not JSON, so it is no report"),
        (("README.md", "--scores", "missing.json"), "there is no file missing.json"),
        (("README.md", "--scores", "."), "folder . has no report"),
        (("README.md", "--scores", "reports", "--benchmark", "owner/rsicd"), "DATASET=OWNER/NAME"),
        (("scores.md", "--scores", "reports"), "no front matter"),
    ],
)
def test_wrong_input_costs_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(folder)
    result = run(*arguments)
    assert result.exit_code == 2 and result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert not (folder / "a.md").exists()
    assert line.startswith("rsmoe: error: ") and message in line


def test_a_whole_card_and_a_stac_item(checkpoint: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a checkpoint's folder, README.md and stac_item.json in it, or elsewhere."""
    monkeypatch.chdir(folder)
    shutil.copytree(checkpoint, folder / "mine")
    (folder / "mine" / "training.json").write_text(json.dumps(training("stage2", training("stage1"))))
    done = run("mine", "--scores", "reports", "--table", "scores.md", "--benchmark", "RSICD=owner/rsicd").stdout
    assert done.splitlines() == [
        "mine/README.md: written",
        "mine/.eval_results/rsmoe.yaml: written, 1 entry",
        'no entry in .eval_results/rsmoe.yaml for RSVQA-LR test: no benchmark on the Hub is known for "RSVQA-LR"',
        "the card does not say: license, summary, intended_use, limits, risks; write mine/card.yaml",
        "scores.md: written",
        "mine/stac_item.json: written",
    ]
    card = ModelCard.load(folder / "mine" / "README.md")
    assert [one.metric_value for one in card.data.eval_results] == [150.0, 70.0] and card.data.model_name == "mine"
    assert "| RSICD, test (1 image) | CIDEr-D | 150.0 [149.0, 151.0] |\n" in card.text
    assert json.loads((folder / "mine" / "stac_item.json").read_text())["id"] == "mine"
    assert run("mine", "--scores", "reports").stdout.count(": unchanged") == 2
    monkeypatch.setitem(sys.modules, "pystac", None)  # which only reads and validates items
    assert run("mine", "--output", "other.md", "--stac", "item.json").stdout.splitlines()[-1] == "item.json: written"
    assert (folder / "item.json").read_text() == (folder / "mine" / "stac_item.json").read_text()
    (folder / "mine" / "stac_item.json").unlink()
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    assert [line.split(":")[0] for line in run("mine", "--output", "new.md").stdout.splitlines()][0] == "new.md"
    (folder / "new.md").unlink()
    assert {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()} == before  # nothing else
