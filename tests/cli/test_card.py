"""`rsmoe card`: from report files to a card."""

from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from typer.testing import CliRunner, Result

from modeling_rsmoe.cli import app
from modeling_rsmoe.evaluation import report
from modeling_rsmoe.evaluation.scores import Score, Scored


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
    checkpoint: report.Checkpoint = {"name": "tiny", "sha256": "0" * 64}
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
    arguments = (folder, "--scores", folder / "reports", "--table", folder / "scores.md")
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
        (("README.md",), "Missing option '--scores'"),
        (("README.md", "--scores", "README.md"), "is not JSON, so it is no report"),
        (("README.md", "--scores", "missing.json"), "report missing.json cannot be read"),
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
    assert line.startswith("rsmoe: error: ") and message in line
