"""`rsmoe bench`: what it measures, writes, shows and refuses."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from modeling_rsmoe.bench import device, equality, run, speed
from modeling_rsmoe.bench.peers import Texts
from modeling_rsmoe.bench.results import write_results
from modeling_rsmoe.cli import app

from ..bench.results import made_results


def command(*arguments: Any) -> Result:
    return CliRunner().invoke(app, ["bench", *map(str, arguments)], catch_exceptions=False, prog_name="rsmoe")


def error(result: Result) -> str:
    assert result.exit_code == 2 and result.stdout == ""
    (line,) = [line for line in result.stderr.splitlines() if not line.endswith(" ...")]
    return line.removeprefix("rsmoe: error: ")


def test_quick_checks_equality_and_no_times(checkpoint: Path) -> None:
    result = command(checkpoint, "--quick")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.count(" equal ") == len(equality.VARIANTS) + 3
    assert "captions/s" not in result.stdout and "Targets" not in result.stdout


@pytest.mark.slow
def test_quick_fails_where_a_variant_says_something_else(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(equality.VARIANTS, "a wrong one", lambda bench, inputs: Texts([[5]] * 6, [[5]] * 6))
    result = command(checkpoint, "--quick", "--output", tmp_path / "wrong.json")
    assert result.exit_code == 1
    (line,) = [line for line in result.stderr.splitlines() if "error" in line]
    assert line.startswith("rsmoe: error: a wrong one differs from all in one batch: router 0 (theme): token 0 is 5")
    written = json.loads((tmp_path / "wrong.json").read_text())["equality"]
    assert [one["name"] for one in written if one["differences"]] == ["a wrong one"]


@pytest.mark.slow
def test_a_run_writes_all_times_and_a_plot(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "IMAGES", (1, 2))
    monkeypatch.setattr(speed, "MOST_IMAGES", 3)
    file = tmp_path / "new" / "bench.json"
    options = ["--only", "throughput", "--only", "latency", "--repeats", 2, "--tokens", 2, "--threads", 1]
    result = command(checkpoint, "--output", file, *options)
    assert result.exit_code == 0, result.stderr
    assert sorted(path.name for path in file.parent.iterdir()) == ["bench.json", "bench.png"]
    written = json.loads(file.read_text())
    assert list(written["sections"]) == ["latency", "throughput"] and "equality" not in written
    times = [of_variant for one in written["sections"]["throughput"]["groups"] for of_variant in one["times"].values()]
    assert len(times) == 7 and all(len(one["wall"]) == len(one["cpu"]) == 2 for one in times[:-1])
    assert written["checkpoint"]["name"] == "tiny"  # not where it lies on this machine
    assert written["machine"]["threads"] == 1 and len(written["checkpoint"]["sha256"]) == 64
    assert "full, template, concat" in result.stdout and "not measured" in result.stdout
    with Image.open(file.with_suffix(".png")) as plot:
        assert plot.format == "PNG"
    again = command("--from", file, "--markdown")
    assert again.exit_code == 0 and again.stdout.startswith("**Targets**")


def test_a_device_is_measured_alone(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "IMAGES", (1, 2))
    file = tmp_path / "bench.json"
    result = command(checkpoint, "--device", "cpu", "--repeats", 1, "--tokens", 3, "--output", file)
    assert result.exit_code == 0, result.stderr
    (section,) = json.loads(file.read_text())["sections"].values()
    assert [one["key"] for one in section["groups"]] == ["device: 1", "device: 2", "caches: 1", "caches: 2"]


def test_every_section_has_a_name() -> None:
    from modeling_rsmoe.cli.bench import SECTIONS

    assert SECTIONS == run.NAMES


@pytest.mark.slow
def test_interrupted_it_leaves_nothing(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setitem(run.SECTIONS, "growth", interrupt)
    options = ["--only", "latency", "--only", "growth", "--repeats", 1, "--tokens", 2]
    result = command(checkpoint, "--output", tmp_path / "bench.json", *options)
    assert result.exit_code == 130 and list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_shown_again_as_markdown(tmp_path: Path) -> None:
    write_results(made_results(), tmp_path / "bench.json")
    result = command("--from", tmp_path / "bench.json", "--markdown", "--clock", "cpu")
    assert result.exit_code == 0 and "| full, router, concat | 2.00 |" in result.stdout
    again = command("--from", tmp_path / "bench.json", "--output", tmp_path / "copy.json")
    assert "Targets" in again.stdout and (tmp_path / "copy.png").is_file()
    command("--from", tmp_path / "bench.json", "--plot", tmp_path / "only.svg")
    assert (tmp_path / "only.svg").is_file() and not (tmp_path / "only.json").exists()
    assert "write .svg or .png" in error(command("--from", tmp_path / "bench.json", "--plot", tmp_path / "a.gif"))
    assert (tmp_path / "copy.json").read_bytes() == (tmp_path / "bench.json").read_bytes()


def test_wrong_usage(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from modeling_rsmoe.cli import bench

    monkeypatch.setattr(bench, "load", lambda *arguments: pytest.fail("the model was loaded"))
    assert error(command(checkpoint, "--only", "speed")).startswith(
        "--only speed: there is no such section; known are"
    )
    assert error(command(checkpoint, "--only", "training")) == "the section training needs --data, a data folder"
    assert "leave --only out" in error(command(checkpoint, "--quick", "--only", "cold"))
    assert "leave MODEL" in error(command(checkpoint, "--from", tmp_path / "x.json"))
    assert "there is no file" in error(command("--from", tmp_path / "x.json"))
    assert "is a folder" in error(command(checkpoint, "--output", tmp_path))
    assert command(checkpoint, "--repeats", 0).exit_code == 2
    for name in ("nowhere", "cuda:99"):
        assert error(command(checkpoint, "--device", name)).startswith(f"--device {name} cannot be used (")
    absent = error(command(checkpoint, "--gguf", tmp_path / "x.gguf", "--only", "peers"))
    assert absent == f"there is no file {tmp_path / 'x.gguf'}; give --gguf a GGUF file of the LLM"
    assert error(command(checkpoint, "--data", tmp_path / "absent")).startswith("data folder")
