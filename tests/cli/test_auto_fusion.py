"""Captions are chosen where the checkpoint has a reranker; other instructions and questions are not."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from modeling_rsmoe import RSMoEForConditionalGeneration, RSMoEProcessor
from modeling_rsmoe.prompting_rsmoe import DEFAULT_INSTRUCTION, question_instruction
from modeling_rsmoe.utils.images import read_image
from tests.cli.test_cli import errors, run
from tests.tiny import tiny_checkpoint


SHORT = ("--max-new-tokens", 8)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("rerank") / "tiny", reranker_rank=8, reranker_buckets=64)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder, draw = tmp_path_factory.mktemp("images"), np.random.default_rng(3)
    files = [folder / f"{i}.png" for i in range(3)]
    for file in files:
        Image.fromarray(draw.integers(0, 256, (30, 30, 3), np.uint8)).save(file)
    return files


def texts(checkpoint: Path, images: list[Path], instruction: str, fusion: str) -> list[str]:
    model, processor = (kind.from_pretrained(checkpoint) for kind in (RSMoEForConditionalGeneration, RSMoEProcessor))
    inputs = processor(images=[read_image(i) for i in images], text=[instruction] * len(images), return_tensors="pt")
    outputs = model.generate(**inputs, fusion=fusion, max_new_tokens=8, return_dict_in_generate=True)
    return [said["text"] for said in processor.post_process_generation(outputs)]


def said(*arguments: object, name: str = "caption") -> list[str]:
    result = run(*arguments, "--json", *SHORT)
    assert result.exit_code == 0, result.stderr
    return [json.loads(line)[name] for line in result.stdout.splitlines()]


def test_captions_are_chosen(checkpoint: Path, images: list[Path]) -> None:
    chosen = texts(checkpoint, images, DEFAULT_INSTRUCTION, "rerank")
    assert said("caption", *images, "--model", checkpoint) == chosen
    joined = texts(checkpoint, images, DEFAULT_INSTRUCTION, "concat")
    assert said("caption", *images, "--model", checkpoint, "--fusion", "concat") == joined != chosen


def test_other_instructions_and_questions_are_not(checkpoint: Path, images: list[Path]) -> None:
    other = said("caption", *images, "--model", checkpoint, "--instruction", "Count the planes.")
    assert other == texts(checkpoint, images, "Count the planes.", "concat")  # the model's own default
    answers = [said("ask", file, "Is there a road?", "--model", checkpoint, name="answer") for file in images]
    assert sum(answers, []) == texts(checkpoint, images, question_instruction("Is there a road?"), "rewrite")


def test_an_archive_is_chosen_as_well(checkpoint: Path, images: list[Path], tmp_path: Path) -> None:
    table = pytest.importorskip("pyarrow.parquet")
    result = run("caption", images[0].parent, "--output", tmp_path / "a.parquet", "--model", checkpoint, *SHORT)
    assert result.exit_code == 0, result.stderr
    rows = table.read_table(tmp_path / "a.parquet").to_pylist()
    found = {Path(row["image"]).name: row["caption"] for row in rows}
    assert [found[file.name] for file in images] == texts(checkpoint, images, DEFAULT_INSTRUCTION, "rerank")


def test_evaluation_says_how_texts_were_made(checkpoint: Path, images: list[Path], tmp_path: Path) -> None:
    entry = {"dataset": "Tiny", "split": "test"}
    captions = [{**entry, "image": file.name, "captions": ["a river .", "a road ."]} for file in images]
    asked = {"question": "Is there a river?", "question_type": "presence", "answer": "yes"}
    for name, lines in {"captions": captions, "vqa": [{**entry, "image": f.name, **asked} for f in images]}.items():
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    for file in images:
        (tmp_path / file.name).symlink_to(file)
    made = {}
    for task in ("captioning", "vqa"):
        output = tmp_path / f"{task}-report.json"
        result = run("evaluate", checkpoint, "--data", tmp_path, "--task", task, "--output", output, *SHORT)
        assert result.exit_code == 0, result.stderr
        made[task] = json.loads(output.read_text())["settings"].get("fusion")
    assert made == {"captioning": "rerank", "vqa": None}
    lines = (tmp_path / "captioning-report.jsonl").read_text().splitlines()
    found = [json.loads(line)["caption"] for line in lines]
    assert found == texts(checkpoint, images, DEFAULT_INSTRUCTION, "rerank")


def test_without_a_selector_it_is_refused(images: list[Path], tmp_path: Path) -> None:
    plain = tiny_checkpoint(tmp_path / "plain")
    (said,) = errors(run("caption", images[0], "--model", plain, "--fusion", "rerank"))
    assert "needs a reranker" in said and "rsmoe train reranker" in said
