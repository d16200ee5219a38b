"""Every library that only some commands need comes through `extras.require`, which says what installs it."""

import ast
import functools
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "modeling_rsmoe"
# Run by the library `evaluate`, which looks for these imports in their text.
NOT_OURS_TO_RUN = [PACKAGE / "evaluation" / "metrics"]
# A command that needs the module, the extra that brings it.
COMMANDS = {
    "gguf": ("assemble", "assemble rs-moe-nano --output {out}/nano"),
    "onnx": ("assemble", "assemble rs-moe-nano --output {out}/nano"),
    "pycocoevalcap": ("eval", "evaluate {checkpoint} --data {data} --output {out}/report.json"),
    "datasets": ("train", "train stage1 --config {data}/x.yaml --data {data} --output {out}/run"),
    "matplotlib": ("train", "train stage1 --config {data}/x.yaml --data {data} --output {out}/run"),
    "tensorboard": ("train", "train stage2 --config {data}/x.yaml --data {data} --output {out}/run"),
    "trl": ("train", "train stage2 --config {data}/x.yaml --data {data} --output {out}/run"),
    "rasterio": ("geo", "caption {data}/a.png --tile 16 --model {checkpoint}"),
    "geopandas": ("geo", "caption {data}/a.png --tile 16 --output {out}/x.gpkg --model {checkpoint}"),
    "pystac": ("geo", "ask {data}/item.json Why? --model {checkpoint}"),
    "pyarrow": ("geo", "encode {data} --output {out}/x.parquet --model {checkpoint}"),
    "gradio": ("demo", "demo --no-examples --model {checkpoint}"),
    "fastapi": ("serve", "serve --model {checkpoint}"),
    "uvicorn": ("serve", "serve --model {checkpoint}"),
    "prometheus_client": ("serve", "serve --model {checkpoint}"),
    "ray": ("ray", "caption {data} --output {out}/x.parquet --engine ray --model {checkpoint}"),
}


def extras() -> dict[str, list[str]]:
    """The names of the distributions that each extra lists."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    names = {
        extra: [re.split(r"[^\w.-]", line)[0].lower() for line in lines]
        for extra, lines in project["optional-dependencies"].items()
    }
    own = {re.split(r"[^\w.-]", line)[0].lower() for line in project["dependencies"]}
    return {"": sorted(own), **{extra: lines for extra, lines in names.items() if extra not in ("all", "dev")}}


def needed_by(distribution: str, seen: set[str]) -> set[str]:
    """What a distribution brings along, and itself."""
    if distribution not in seen:
        seen.add(distribution)
        try:
            lines = metadata.requires(distribution) or []
        except metadata.PackageNotFoundError:
            lines = []
        for line in lines:
            if "extra ==" not in line:
                needed_by(re.split(r"[^\w.-]", line)[0].lower(), seen)
    return seen


@functools.cache
def homes_of_modules() -> dict[str, list[str]]:
    return dict(metadata.packages_distributions())


def modules_of(distributions: set[str]) -> set[str]:
    return {
        module
        for module, homes in homes_of_modules().items()
        if {home.lower().replace("_", "-") for home in homes} & {name.replace("_", "-") for name in distributions}
    }


def imports(tree: ast.AST) -> Iterator[str]:
    """The top names of all modules that code imports, except for type checkers."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            yield node.module.split(".")[0]
        yield from imports(node)


def required(tree: ast.AST, constants: dict[str, str]) -> Iterator[tuple[str, str]]:
    """(module, extra) of all calls of `require` with names that are written there, or in the loop around it."""
    loops = {
        name: [each.value for each in node.iter.elts if isinstance(each, ast.Constant)]
        for node in ast.walk(tree)
        if isinstance(node, ast.For) and isinstance(node.iter, ast.Tuple) and (name := ast.unparse(node.target))
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "require" and len(node.args) == 2:
            module, extra = node.args
            name = extra.value if isinstance(extra, ast.Constant) else constants.get(ast.unparse(extra), "")
            modules = [module.value] if isinstance(module, ast.Constant) else loops.get(ast.unparse(module), ())
            yield from ((str(each).split(".")[0], str(name)) for each in modules)


@pytest.mark.slow
def test_the_extra_that_is_named_brings_the_module() -> None:
    """And nothing that stands in an extra alone is imported without a `require` somewhere."""
    listed = extras()
    brought = {
        extra: modules_of(set().union(*(needed_by(name, set()) for name in names))) for extra, names in listed.items()
    }
    heavy = set().union(*(modules_of(set(names)) for extra, names in listed.items() if extra)) - brought[""]
    assert {"rasterio", "ray", "trl", "gradio", "fastapi", "torchao", "pycocoevalcap"} <= heavy
    asked: set[str] = set()
    used: list[tuple[Path, str]] = []
    for file in sorted(PACKAGE.rglob("*.py")):
        if any(folder in file.parents for folder in NOT_OURS_TO_RUN):
            continue
        tree = ast.parse(file.read_text(encoding="utf-8"))
        for module, extra in required(tree, {"EXTRA": "geo"}):
            asked.add(module)
            assert extra in brought and module in brought[extra], f"{file}: {module} does not come with [{extra}]"
        used += [(file, module) for module in imports(tree) if module in heavy]
    assert [f"{file}: {module}" for file, module in used if module not in asked] == []
    assert used and asked


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_commands_without_a_module(checkpoint: Path, tmp_path: Path) -> None:
    places = {"checkpoint": checkpoint, "data": tmp_path / "data", "out": tmp_path / "out"}
    places["data"].mkdir()
    places["out"].mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    Image.fromarray(pixels).save(places["data"] / "a.png")
    row = {"image": "a.png", "dataset": "own", "split": "test", "captions": ["A road ."]}
    (places["data"] / "captions.jsonl").write_text(json.dumps(row) + "\n")
    (places["data"] / "x.yaml").write_text("stage1: {}\nstage2: {}\n")
    item = {"type": "Feature", "stac_version": "1.0.0", "id": "x", "assets": {}, "links": [], "properties": {}}
    (places["data"] / "item.json").write_text(json.dumps(item))
    cases = {module: [part.format(**places) for part in line.split()] for module, (_, line) in COMMANDS.items()}
    done = subprocess.run(
        [sys.executable, "-m", "tests.cli.blocked", json.dumps(cases)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    for module, (extra, _) in COMMANDS.items():
        code, out, err = found[module]
        lines = [line for line in err.splitlines() if not line.endswith(" ...")]
        message = f'rsmoe: error: this needs {module}[^:]*, which is not installed: pip install "rsmoe\\[{extra}\\]"'
        assert code == 2 and out == "" and len(lines) == 1, (module, code, out, err)
        assert re.fullmatch(message, lines[0]), (module, err)
    assert [path for path in places["out"].rglob("*") if path.is_file()] == []
