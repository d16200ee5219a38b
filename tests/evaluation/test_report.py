"""Reports: the file, tables."""

import json
from pathlib import Path
from typing import Any

import pytest

from modeling_rsmoe.data.records import CaptionRecord, QuestionRecord
from modeling_rsmoe.errors_rsmoe import RSMoEError
from modeling_rsmoe.evaluation import report
from modeling_rsmoe.evaluation.markdown import folded_tables, score_tables, summary_table
from modeling_rsmoe.evaluation.scores import Score, Scored
from modeling_rsmoe.generation_rsmoe import auto_fusion
from modeling_rsmoe.utils.files import write_whole


SCORES = Path(__file__).parents[2] / "docs" / "scores"
SCORED = Scored({"BLEU-1": Score(61.7, 60.1, 63.2), "CIDEr-D": Score(153.84, 146.1, 161.94)}, [{}])
CONSTANT = Scored({"BLEU-1": Score(25.6, 25.0, 26.2), "CIDEr-D": Score(27.0, 22.5, 31.4)}, [{}])


@pytest.fixture
def records(tmp_path: Path) -> list[CaptionRecord]:
    names = ["a.png", "b.png"]
    for name in names:
        (tmp_path / name).write_bytes(name.encode())
    return [CaptionRecord(tmp_path / name, "RSICD", "val", (f"Image {name} .",)) for name in names]


def captioning(records: list[CaptionRecord], system: str = "full", **values: Any) -> report.Report:
    settings: dict[str, Any] = {
        "scored": SCORED,
        "dataset": "RSICD",
        "split": "val",
        "limit": None,
        "baselines": {"constant": CONSTANT},
        "seconds": 3.2,
    }
    result = report.make_result(records, records[0].image.parent, **(settings | values))
    checkpoint: report.CheckpointEntry = {"name": "tiny", "sha256": "0" * 64}
    return report.make_report(
        "captioning", system, checkpoint, {}, [result], machine="cpu", seconds=4.0, peak_memory_bytes=5_000
    )


def test_report_round_trip(tmp_path: Path, records: list[CaptionRecord]) -> None:
    made = captioning(records, expert_texts={"theme": CONSTANT})
    report.write_report(made, tmp_path / "new" / "report.json")
    assert report.read_report(tmp_path / "new" / "report.json") == made
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["report.json"]

    (result,) = made["results"]
    assert (result["images"], result["items"], result["seconds_per_image"]) == (2, 2, 1.6)
    assert result["scores"]["CIDEr-D"] == {"value": 153.84, "low": 146.1, "high": 161.94}
    assert result["expert_texts"]["theme"] == result["baselines"]["constant"]
    assert {"rsmoe", "torch", "transformers", "python"} <= set(made["versions"])


def test_questions_have_seconds_per_item(records: list[CaptionRecord]) -> None:
    questions = [QuestionRecord(records[0].image, "RSVQA-LR", "val", f"Is {n}?", "presence", "yes") for n in range(4)]
    result = report.make_result(
        questions,
        records[0].image.parent,
        SCORED,
        dataset="RSVQA-LR",
        split="val",
        limit=4,
        baselines={},
        seconds=2.0,
    )
    assert (result["images"], result["items"], result["seconds_per_item"]) == (1, 4, 0.5)
    assert "seconds_per_image" not in result and "expert_texts" not in result


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("format",), 2, "no report of format 1"),
        (("task",), "chess", "its task is 'chess'"),
        (("results",), "none", '"results" of the report'),
        (("results", 0), 3, 'item 1 of "results" of the report is 3'),
        (("results", 0, "sha256"), None, '"sha256" of item 1 of "results" of the report is None'),
        (
            ("results", 0, "scores", "BLEU-1"),
            61.7,
            '"BLEU-1" of "scores" of item 1 of "results" of the report is 61.7',
        ),
        (("results", 0, "baselines", "constant"), [], '"constant" of "baselines" of item 1 of "results"'),
        (("results", 0, "expert_texts"), [], '"expert_texts" of item 1 of "results" of the report is []'),
        (("checkpoint", "name"), 7, '"name" of "checkpoint" of the report is 7'),
        (
            ("against",),
            [{"name": "base", "differences": [{"dataset": "all"}]}],
            'item 1 of "differences" of item 1 of "against" of the report has no "items"',
        ),
    ],
)
def test_a_wrong_file_is_refused(
    tmp_path: Path, records: list[CaptionRecord], path: tuple[Any, ...], value: Any, message: str
) -> None:
    values: Any = json.loads(json.dumps(captioning(records)))
    inner = values
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    file = tmp_path / "report.json"
    file.write_text(json.dumps(values))
    with pytest.raises(RSMoEError, match="report.json") as caught:
        report.read_report(file)
    assert message in str(caught.value)


@pytest.mark.parametrize("content", [None, "{", "[1]", '{"results": []}'])
def test_what_is_no_report_is_refused(tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "report.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(RSMoEError, match="rsmoe evaluate --output" if content else "there is no file"):
        report.read_report(file)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, records: list[CaptionRecord]) -> None:
    file = tmp_path / "report.json"
    file.write_text("old")
    broken = captioning(records)
    broken["seconds"] = float("nan")
    with pytest.raises(ValueError):
        report.write_report(broken, file)
    with pytest.raises(UnicodeEncodeError):
        write_whole(file, "\ud800")
    assert file.read_text() == "old" and sorted(path.name for path in tmp_path.iterdir()) == [
        "a.png",
        "b.png",
        "report.json",
    ]


@pytest.mark.parametrize("file", sorted(SCORES.glob("*.json")), ids=lambda file: file.stem)
def test_published_reports_are_those_of_the_default_fusion(file: Path) -> None:
    """They were made with fusions by name; nano has a reranker, so that a run with "auto" comes to the same."""
    made = report.read_report(file)
    if made["system"].startswith("full"):
        task = {"captioning": "caption", "vqa": "question"}[made["task"]]
        assert made["settings"]["fusion"] == auto_fusion(task, has_reranker=True)
    else:
        assert "fusion" not in made["settings"]


# ---- tables


def lines_of(text: str, start: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith(start)]


def test_table_has_each_system_and_baseline_once(records: list[CaptionRecord]) -> None:
    full = captioning(records, expert_texts={"theme": CONSTANT})
    base = captioning(records, "base", seconds=1.0)
    blind = captioning(records, "full, no image", scored=CONSTANT)
    constant = captioning(records, "constant", scored=CONSTANT, seconds=None)
    table = score_tables([full, blind, base, constant])
    assert lines_of(table, "|") == [
        "| system | BLEU-1 | CIDEr-D | s / image |",
        "| --- | ---: | ---: | ---: |",
        "| full model | 61.7 [60.1, 63.2] | 153.8 [146.1, 161.9] | 1.60 |",
        "| base LM alone | 61.7 [60.1, 63.2] | 153.8 [146.1, 161.9] | 0.50 |",
        "| full model: text of the theme expert | 25.6 [25.0, 26.2] | 27.0 [22.5, 31.4] |  |",
        "| full model without the image | 25.6 [25.0, 26.2] | 27.0 [22.5, 31.4] | 1.60 |",
        "| the most frequent training caption | 25.6 [25.0, 26.2] | 27.0 [22.5, 31.4] |  |",
    ]
    assert lines_of(table, "**") == ["**RSICD, val (2 images)**"]
    assert "Checkpoint tiny: sha256 000000000000." in table
    assert f"RSICD val {full['results'][0]['sha256'][:12]}" in table


def test_other_data_is_another_table(records: list[CaptionRecord]) -> None:
    """The same split with one image less was scored: its scores must not stand beside those of the whole."""
    tables = score_tables([captioning(records), captioning(records[:1], "base", limit=1)])
    assert lines_of(tables, "**") == ["**RSICD, val (2 images)**", "**RSICD, val (1 image, limited to 1)**"]
    assert len(lines_of(tables, "| system")) == 2


def test_summary_is_of_test_splits(records: list[CaptionRecord]) -> None:
    """One row for each, the best baseline of each kind; columns that nothing was measured for are left out."""
    nearest = Scored({"CIDEr-D": Score(80.0, 70.0, 90.0)}, [{}])
    full = captioning(records, split="test", baselines={"constant": CONSTANT, "nearest": nearest})
    base, blind = (captioning(records, system, split="test") for system in ("base", "full, no image"))
    assert summary_table([full, base, blind, captioning(records)]).splitlines() == [
        "|  | score | full model | base LM alone | retrieval | without the image |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
        "| RSICD, test (2 images) | CIDEr-D | 153.8 [146.1, 161.9] | 153.8 | 80.0 | 153.8 |",
    ]
    assert summary_table([captioning(records)]).splitlines() == [
        "|  | score | full model | without the image |",
        "| --- | --- | ---: | ---: |",
        "| RSICD, val (2 images) | CIDEr-D | 153.8 [146.1, 161.9] | 27.0 |",
    ]


def test_folded_tables_have_test_first(records: list[CaptionRecord]) -> None:
    reports = [captioning(records), captioning(records, split="test"), captioning(records, "base", split="test")]
    text = folded_tables(reports)
    assert lines_of(text, "<") == [
        "<details markdown>",
        "<summary>Captions, test: every score and baseline</summary>",
        "</details>",
        "<details markdown>",
        "<summary>Captions, val: every score and baseline</summary>",
        "</details>",
    ]
    assert text.count("| base LM alone") == 1 and score_tables(reports[:1]).strip() in text


def test_table_distinguishes_runs_of_one_system(records: list[CaptionRecord]) -> None:
    one, three, small = captioning(records), captioning(records), captioning(records)
    one["settings"], three["settings"] = {"num_beams": 1, "dtype": "float32"}, {"num_beams": 3, "dtype": "float32"}
    assert [line.split(" | ")[0] for line in lines_of(score_tables([one, three]), "| full")] == [
        "| full model (num_beams 1)",
        "| full model (num_beams 3)",
    ]
    small["checkpoint"] = {"name": "small", "sha256": "1" * 64}
    rows = lines_of(score_tables([one, small]), "| ")[2:4]
    assert [row.split(" | ")[0] for row in rows] == ["| tiny, full model", "| small, full model"]


def test_table_says_what_is_missing_and_how_it_was_made(records: list[CaptionRecord]) -> None:
    scored = Scored(SCORED.scores, [{}], missing={"METEOR": "no | Java <b>"}, notes={"tokenizer": "ours"})
    table = score_tables([captioning(records, scored=scored)])
    assert "- METEOR is missing: no \\| Java &lt;b>." in table
    assert "- tokenizer: ours." in table and "- Peak memory: 0.0 GB." in table and "python 3." in table


def test_a_table_is_of_one_task(records: list[CaptionRecord]) -> None:
    other = captioning(records)
    other["task"] = "vqa"
    with pytest.raises(RSMoEError, match="captioning, vqa"):
        score_tables([captioning(records), other])
    with pytest.raises(RSMoEError, match="no report"):
        score_tables([])
