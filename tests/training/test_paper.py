"""The paper's experiment as one script, on made folders in the published formats and tiny pretrained models."""

import importlib.util
import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from modeling_rsmoe import RSMoEProcessor
from modeling_rsmoe.cli import app
from modeling_rsmoe.evaluation.report import read_report

from ..data.published import PUBLISHED
from ..hub.test_convert import sources  # noqa: F401  # a fixture: an InstructBLIP and a Llama
from .test_paragraphs import paragraphs


EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
TINY = {"per_device_train_batch_size": 4, "warmup_steps": 1, "save_steps": 2, "max_steps": 2}
SETTINGS = {
    "stage1": {**TINY, "lora_r": 2, "caption_share": 0.5, "answer_share": 0, "rewrite_share": 0.5},
    "stage2": {**TINY, "router_share": 0.5, "expert_share": 0.5, "question_share": 0},
}
TESTS = {"rsieval": "RSIEval", "ucm": "UCM_captions", "sydney": "Sydney_captions", "rsivqa": "RSIVQA"}


@pytest.fixture(scope="module")
def paper():
    sys.path.insert(0, str(EXAMPLES))
    try:
        spec = importlib.util.spec_from_file_location("paper", EXAMPLES / "paper.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(EXAMPLES))
    return module


@pytest.fixture
def downloads(tmp_path) -> Path:
    """What people have: RSICD and VRSBench are not there."""
    paragraphs(tmp_path / "downloads/RSICap")
    for key, folder in TESTS.items():
        PUBLISHED[key](tmp_path / "downloads" / folder)
    return tmp_path / "downloads"


def tiny_size(settings: Path, folder: Path) -> Path:
    """Like a folder of hub_configs: settings of trainings, and beams and penalties as the paper's sizes have."""
    shutil.copytree(settings, folder)
    (folder / "training.yaml").write_text(yaml.safe_dump(SETTINGS))
    generation = json.loads((folder / "generation_config.json").read_text())
    generation |= {"max_new_tokens": 4, "num_beams": 2, "repetition_penalty": 1.5, "router_max_new_tokens": 4}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder


@pytest.mark.slow
def test_from_folders_to_the_table(paper, sources, downloads, tmp_path, without_java, monkeypatch, capsys):  # noqa: F811
    called = []

    def in_this_process(*words):
        called.append([str(word) for word in words])
        result = CliRunner().invoke(app, called[-1], catch_exceptions=False)
        assert result.exit_code == 0, result.output

    monkeypatch.setattr(paper, "rsmoe", in_this_process)
    monkeypatch.setenv("RSMOE_CACHE", str(tmp_path / "cache"))
    run, size = tmp_path / "run", tiny_size(sources.settings, tmp_path / "rs-moe-tiny")
    given = [size, "--downloads", downloads, "--instructblip", sources.instructblip, "--llm", sources.llm]
    command = [*map(str, given), "--output", str(run)]
    table = paper.main(command)
    told = capsys.readouterr().out

    # Absent datasets are said, here and in the table, and are no error.
    for dataset in ("RSICD", "VRSBench"):
        assert f"{dataset}: skipped, there is no {downloads / dataset}" in told
        assert f"| {dataset} | **not run**: there is no {downloads / dataset} |" in table
    assert table in told and (run / "table.md").read_text() == f"{table}\n"

    # Every row that was run has the scores of its report, under what was published.
    rows = [line.strip("| ").split(" | ") for line in table.splitlines()]
    titles = {row[0]: row for row in rows if row[1:2] == ["**run here**: rs-moe-tiny"]}
    ablations = ["no image", "base LM alone", "no router", "1 expert", "2 experts", "4 experts", "one stage"]
    scored = ["RSIEval", "UCM-Captions", "Sydney-Captions", "RSIEval: answers", "RSIVQA: answers"]
    assert list(titles) == [*scored, *(f"RSIEval: {name}" for name in ablations)]
    report = read_report(run / "reports" / "captions-ucm.json")
    settings = {"num_beams": 2, "repetition_penalty": 1.5, "max_new_tokens": 4, "fusion": "rewrite"}
    assert report["settings"].items() >= {**settings, "dtype": "bfloat16"}.items()
    scores = report["results"][0]["scores"]
    assert titles["UCM-Captions"][2:5] == ["1", *(f"{scores[name]['value']:.2f}" for name in ("BLEU-1", "BLEU-4"))]
    accuracy = read_report(run / "reports" / "answers-rsivqa.json")["results"][-1]["scores"]["accuracy"]
    assert "{value:.2f} [{low:.1f}, {high:.1f}]".format(**accuracy) in titles["RSIVQA: answers"]
    assert "| RSIEval | published: RS-MoE-7B [B] |  |  |  |  |  | 158.36 |  |" in table
    changed = [read_report(run / "reports" / f"ablation-{name}.json") for name in ("1-expert", "base", "no-router")]
    assert [report["system"] for report in changed] == ["full:theme", "base", "full"]
    assert changed[-1]["settings"]["router_mode"] == "none"

    # What was learned: RSICap alone, in two stages, in one, and with a fourth expert.
    lines = [json.loads(line) for line in (run / "data/captions.jsonl").read_text().splitlines()]
    assert {line["dataset"] for line in lines if line["split"] == "train"} == {"RSICap"}
    assert all(line["aspects"]["number"] for line in lines if line["split"] == "train")
    trained = {name: json.loads((run / name / "training.json").read_text()) for name in ("stage2", "one-stage")}
    assert trained["stage2"]["before"]["stage"] == "stage1" and trained["one-stage"]["before"] is None
    assert trained["one-stage"]["steps"] == 4 and trained["one-stage"]["recipe"]["caption_share"] == 0.25
    assert RSMoEProcessor.from_pretrained(run / "4-experts").experts == ["theme", "object", "relation", "number"]
    assert "RSIEval" in (run / "stage2" / "README.md").read_text()

    # Again: nothing is done, and the table is the same. A report that is lost is made again, and the card after it.
    before = len(called)
    assert paper.main(command) == table and len(called) == before
    assert "stage 1: finished before" in capsys.readouterr().out
    (run / "reports" / "captions-ucm.json").unlink()
    assert paper.main(command) == table
    assert [words[0] for words in called[before:]] == ["evaluate", "card"]


def test_what_is_wrong_is_said(paper, tmp_path, capfd):
    with pytest.raises(SystemExit) as raised:
        paper.rsmoe("data", "convert", "rsicd", tmp_path / "nowhere", tmp_path / "data")
    assert raised.value.code == 2 and "nowhere" in capfd.readouterr().err
    options = ["--downloads", tmp_path, "--instructblip", tmp_path, "--llm", tmp_path, "--output", tmp_path / "run"]
    for size, said in (("rs-moe-9b", "there is no .*rs-moe-9b"), ("rs-moe-1b", "RSICap, which is trained on")):
        with pytest.raises(SystemExit) as raised:
            paper.main([size, *map(str, options)])
        assert raised.value.code == 2
        assert re.search(said, capfd.readouterr().err)
    assert not (tmp_path / "run").exists()
