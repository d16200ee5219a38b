"""`rsmoe train`: from a data folder to a checkpoint; bad input costs one line and the exit code 2."""

import json
import sys

import pytest

from modeling_rsmoe.cli import main
from modeling_rsmoe.hub import assemble as hub_assemble

from ..tiny import tiny_start
from ..training.conftest import data, features, settings_file, start  # noqa: F401


@pytest.fixture
def rsmoe(monkeypatch, capfd):
    """Run the command line: its exit code, stdout and stderr."""

    def run(*arguments) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["rsmoe", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            main()
        said = capfd.readouterr()
        return int(left.value.code or 0), said.out, said.err

    return run


@pytest.mark.slow
def test_both_stages(rsmoe, start, data, features, settings_file, tmp_path):  # noqa: F811
    shared = ("--config", settings_file, "--data", data, "--features", features, "--max_steps", 2)
    code, out, err = rsmoe("train", "stage1", "--model", start, "--output", tmp_path / "1", *shared)
    assert (code, out) == (0, f"{tmp_path / '1'} (stage1 finished)\n"), err
    assert "examples/s" in err and "Warning" not in err and "Loading weights" not in err
    code, out, err = rsmoe("train", "stage2", "--model", tmp_path / "1", "--output", tmp_path / "2", *shared)
    assert (code, out) == (0, f"{tmp_path / '2'} (stage2 finished)\n"), err
    record = json.loads((tmp_path / "2" / "training.json").read_text())
    assert (record["stage"], record["before"]["stage"], record["arguments"]["max_steps"]) == ("stage2", "stage1", 2)


@pytest.mark.slow
def test_a_name_is_assembled_untrained(rsmoe, start, data, features, settings_file, tmp_path, monkeypatch):  # noqa: F811
    asked = {}

    def assemble(name, output, *, trained, progress):
        asked.update(name=name, trained=trained)
        output.symlink_to(start)

    monkeypatch.setattr(hub_assemble, "assemble", assemble)
    arguments = ("--config", settings_file, "--data", data, "--features", features, "--max_steps", 1)
    code, _, err = rsmoe("train", "stage1", *arguments, "--output", tmp_path / "1", "--model", "rs-moe-nano")
    assert code == 0 and asked == {"name": "rs-moe-nano", "trained": False}, err


@pytest.mark.parametrize(
    ("stage", "change", "said"),
    [
        ("stage1", ("--config", "none.yaml"), "there is no file none.yaml"),
        ("stage1", ("--data", "nowhere"), "data folder"),
        ("stage1", ("--model", "nothing"), "there is no checkpoint nothing"),
        ("stage1", ("--lr", "1"), "wrong setting"),
        ("stage1", ("--language_model", "half"), "language-model: invalid choice: 'half'"),
        ("stage1", ("--datasets", "RSICD"), "RSICD"),
        ("stage2", (), "no finished stage 1"),
    ],
)
def test_bad_input(rsmoe, start, data, features, settings_file, tmp_path, stage, change, said):  # noqa: F811
    given = {"--config": settings_file, "--data": data, "--features": features, "--model": start}
    if stage == "stage2":
        given["--model"] = tiny_start(tmp_path / "untrained")
    given |= {"--output": tmp_path / "out"} | dict(zip(change[::2], change[1::2]))
    code, out, err = rsmoe("train", stage, *[word for pair in given.items() for word in pair])
    lines = [line for line in err.splitlines() if line.startswith("rsmoe: error")]
    assert code == 2 and not out and said in lines[0] and "Traceback" not in err


def test_settings_are_explained(rsmoe):
    code, out, _ = rsmoe("train", "stage2", "--settings")
    assert code == 0 and "router (train): The instruction router." in out and "learning_rate (0.0005): " in out
    code, out, _ = rsmoe("train")
    assert code == 0 and "stage1" in out and "stage2" in out


def test_reranker(rsmoe, start, data, features, tmp_path):  # noqa: F811
    """Of a data folder with too few images it says so; how a reranker is fitted is tested with the training."""
    arguments = ("--model", start, "--data", data, "--features", features, "--output", tmp_path / "out")
    code, out, err = rsmoe("train", "reranker", *arguments)
    assert code == 2 and not out and "8 captioned images are too few" in err and not (tmp_path / "out").exists()
    lines = (data / "captions.jsonl").read_text().splitlines()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "captions.jsonl").write_text("\n".join(lines[:8] * 3))
    for file in data.glob("*.png"):
        (tmp_path / "data" / file.name).symlink_to(file)
    arguments = ("--model", start, "--data", tmp_path / "data", "--features", features, "--rank", 4)
    code, out, err = rsmoe("train", "reranker", *arguments, "--output", tmp_path / "out")
    assert (code, out) == (0, f"{tmp_path / 'out'} (reranker fitted)\n"), err
    assert "fitting to 24 images" in err and "Warning" not in err and "Loading weights" not in err
    assert json.loads((tmp_path / "out" / "config.json").read_text())["reranker_rank"] == 4


def test_data_or_a_step(rsmoe, tmp_path, monkeypatch):
    """What is no step is a folder of one's own; options may stand before it. How it trains: training/test_finetune."""
    monkeypatch.chdir(tmp_path)
    for arguments in (["./stage1", "--output", "out"], ["--output", "out", "chips"]):
        code, _, err = rsmoe("train", *arguments)
        assert code == 2 and "data folder" in err and "does not exist" in err
    code, _, err = rsmoe("train", "stage1", "--output", "out")
    assert code == 2 and "Missing option '--config'" in err
    code, out, _ = rsmoe("train", "chips", "--help")
    assert code == 0 and "How long it takes is said first." in out and "--minutes" in out
