"""Every example runs as it stands, at tiny size."""

import importlib.util
import json
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import logging

from modeling_rsmoe import RSMoEForConditionalGeneration, RSMoEProcessor
from modeling_rsmoe.hub.facts import read_facts
from modeling_rsmoe.prompting_rsmoe import Prompt, question_instruction
from modeling_rsmoe.training.examples import ExampleCollator
from modeling_rsmoe.training.modules import module_of

from .forks import run_forked
from .scenes.rasters import UTM, noise, write_raster
from .tiny import tiny_processor


EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
CAPTIONS = [
    "it is an airport with many planes .",
    "there are some green trees .",
    "many planes are parked near the terminal .",
    "a long runway is beside the terminal .",
    "two white planes .",
]


def example(name: str):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A data folder of ten made images."""
    folder = tmp_path_factory.mktemp("data")
    generator = np.random.default_rng(0)
    captions, questions = [], []
    for i in range(10):
        Image.fromarray(generator.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(folder / f"{i}.png")
        split = "train" if i < 6 else "val"
        captions.append({"image": f"{i}.png", "dataset": "Tiny", "split": split, "captions": CAPTIONS})
        record = {"image": f"{i}.png", "dataset": "TinyVQA", "split": split}
        questions.append({**record, "question": "Is there a plane?", "question_type": "presence", "answer": "yes"})
        questions.append({**record, "question": "How many planes?", "question_type": "count", "answer": str(i)})
    for name, rows in (("captions", captions), ("vqa", questions)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def image_folder(tmp_path_factory) -> Path:
    """Ten made images and their captions, as one's own may be: no splits, one caption each, none of a relation."""
    folder = tmp_path_factory.mktemp("own")
    generator = np.random.default_rng(1)
    lines = []
    for i in range(10):
        Image.fromarray(generator.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(folder / f"{i}.png")
        text = ["it is an airport with many planes .", "there are some green trees ."][i % 2]
        lines.append(json.dumps({"file_name": f"{i}.png", "text": text}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture(autouse=True)
def _same_verbosity():
    """An example may silence transformers; the next test hears it again."""
    before = logging.get_verbosity()
    yield
    logging.set_verbosity(before)


def without_package(code: str, *arguments: str | Path) -> str:
    """What Python code prints in a process where this package cannot be imported."""
    blocked = f"import sys; sys.modules['modeling_rsmoe'] = None\n{code}"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    result = run_forked(["-c", blocked, *arguments], environment)
    assert result.returncode == 0, result.stderr
    return result.stdout


def moved(before: Path, after: Path) -> set[str]:
    """Names of the parts whose weights are not the same in two checkpoints."""
    old, new = load_file(before / "model.safetensors"), load_file(after / "model.safetensors")
    assert old.keys() == new.keys()
    return {module_of(name) for name in old if not torch.equal(old[name], new[name])}


def test_every_example_is_tested():
    tested = "".join(file.read_text() for file in Path(__file__).parent.rglob("test_*.py"))
    assert [path.stem for path in EXAMPLES.glob("*.py") if f'"{path.stem}"' not in tested] == []


@pytest.mark.slow
def test_unchanged_scene(checkpoint, tmp_path, monkeypatch, capsys):
    scene = write_raster(tmp_path / "a.tif", noise(3, 40, 60, "uint8", 255), **UTM)
    monkeypatch.setattr(sys, "argv", ["unchanged_scene.py", str(checkpoint), str(scene), "--tile", "20"])
    example("unchanged_scene").main()
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert [row[1] for row in rows[1:]] == ["6"] * 3
    shares = [[int(cell.strip(" |%")) for cell in row[2:]] for row in rows[1:]]
    assert all(two <= one and one + same <= 100 for two, one, same in shares)


@pytest.mark.slow
def test_scene_memory(checkpoint, tmp_path, monkeypatch, capsys):
    """The scene in a fresh process, which takes most of this test's time; the peak of the one tile is given."""
    module = example("scene_memory")
    run = module.run
    monkeypatch.setattr(module, "run", lambda *args: (1.0, 0.0) if args[1].stem == "48" else run(*args))
    options = ["--folder", tmp_path, "--side", 96, "--tile", 48, "--max-new-tokens", 2]
    monkeypatch.setattr(sys, "argv", ["scene_memory.py", *map(str, [checkpoint, *options])])
    module.main()
    told = capsys.readouterr().out.splitlines()
    assert [line.partition(", peak")[0] for line in told[:2]] == ["one tile: 48 x 48 px", "scene: 96 x 96 px"]
    peak = int(re.search(r", peak (\d+) MB", told[1]).group(1))
    assert peak > 100 and told[2] == f"difference: {peak - 1} MB"
    described = [json.loads(line) for line in (tmp_path / "96.jsonl").read_text().splitlines()]
    assert [line["tile"] for line in described if "tile" in line] == [0, 1, 2, 3]


def test_caption_image(checkpoint, data, capsys):
    result = example("caption_image").main(str(checkpoint), str(data / "0.png"))
    assert capsys.readouterr().out.strip().endswith(result["text"]) and list(result["expert_texts"]) == [
        "theme",
        "object",
        "relation",
    ]


@pytest.mark.slow
def test_compare_weights(checkpoint, capsys):
    """In a fresh process, which takes most of this test's time: so one only."""
    found = example("compare_weights").main([f"{checkpoint}:int8", "--tokens", "2"])[f"{checkpoint}:int8"]
    assert found["memory"] >= found["imported"] > 0 and min(found.values()) > 0
    assert found["disk"] == (checkpoint / "model.safetensors").stat().st_size
    table = capsys.readouterr().out.splitlines()
    assert table[2].startswith(f"| {checkpoint.name}:int8 |") and table[2].endswith("| 1.00 |")


@pytest.mark.slow
def test_sizes_in_the_documents_are_counted(capsys):
    """docs/how-to/quantization.md has the lines that the example prints."""
    example("compare_weights").main(["--sizes"])
    document = (EXAMPLES.parent / "docs" / "how-to" / "quantization.md").read_text()
    assert all(line in document for line in capsys.readouterr().out.splitlines())


@pytest.mark.slow
def test_finetune_with_trainer(checkpoint, image_folder, tmp_path):
    script, output = EXAMPLES / "finetune_with_trainer.py", tmp_path / "out"
    code = "import runpy; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    options = ["--epochs", "20", "--batch", "5", "--learning-rate", "0.01"]
    said = without_package(code, script, checkpoint, image_folder, output, *options)
    losses = [float(loss) for loss in re.findall(r"'loss': '?([0-9.]+)", said)]
    assert len(losses) == 4 and losses[-1] < 0.95 * losses[0]
    assert moved(checkpoint, output) == {"qformer", "projection"}
    (step,) = read_facts(output).steps
    assert (step.name, step.amount, read_facts(output).data[0].name) == ("fine-tuning", "20 epochs", image_folder.name)
    names = {file.name for file in output.rglob("*")}
    assert "modeling_rsmoe.py" in names and not [
        name for name in names if name.endswith((".bin", ".pt", ".pth", ".pkl"))
    ]
    model, processor = RSMoEForConditionalGeneration.from_pretrained(output), RSMoEProcessor.from_pretrained(output)
    inputs = processor(images=image_folder / "0.png", text="Describe the image.", return_tensors="pt")
    result = processor.post_process_generation(model.generate(**inputs, return_dict_in_generate=True))[0]
    assert "should be: it is an airport with many planes ." in said
    assert said.split("\nis: ", 1)[1].strip() == result["text"]


def test_collator_of_the_plain_trainer(image_folder):
    """Tokens, labels and what the Q-Former reads are those of the package's own recipes: the answer does not leak."""
    processor = tiny_processor()
    texts = ["a ship .", "it is an airport with many planes ."]
    images = [Image.open(image_folder / f"{i}.png") for i in range(2)]
    found = example("finetune_with_trainer").collator(processor)(
        [{"image": image, "text": text} for image, text in zip(images, texts)]
    )
    row = {"kind": "caption", "expert": None, "prompt": "Describe the image."}
    rows = [{**row, "image": str(image_folder / f"{i}.png"), "completions": [texts[i]]} for i in range(2)]
    expected = ExampleCollator(processor)(rows)
    assert set(found) <= set(expected)  # what only generation needs is not made
    for name in ("pixel_values", "qformer_input_ids", "qformer_attention_mask"):
        assert torch.equal(found[name], expected[name])
    for i in range(2):
        kept = [batch["attention_mask"][i].bool() for batch in (found, expected)]
        for name in ("input_ids", "labels"):
            assert torch.equal(found[name][i][kept[0]], expected[name][i][kept[1]])
    assert (found["labels"] != -100).sum() == sum(len(f" {text}") + 1 for text in texts)  # bytes, and the end token


def test_finetune_with_trainer_says_what_is_wrong(checkpoint, image_folder, tmp_path, capsys):
    main = example("finetune_with_trainer").main
    with pytest.raises(SystemExit):
        main([str(checkpoint), str(image_folder), str(tmp_path)])
    assert f"{tmp_path} exists; give a new folder" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([str(checkpoint), str(tmp_path / "nowhere"), str(tmp_path / "out")])
    assert "nowhere" in capsys.readouterr().err


@pytest.mark.slow
def test_train_grpo(checkpoint, image_folder, tmp_path):
    """Rewards are read, the encoder alone learns, and the new checkpoint captions as any other."""
    script, output = EXAMPLES / "train_grpo.py", tmp_path / "out"
    code = "import runpy; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    options = ["--steps", "2", "--captions", "2", "--max-tokens", "6", "--learning-rate", "0.01"]
    said = without_package(code, script, checkpoint, image_folder, output, *options)
    assert re.findall(r"step (\d): reward [01]\.\d{3}", said) == ["1", "2"]
    assert moved(checkpoint, output) <= {"qformer", "projection"}
    assert [step.name for step in read_facts(output).steps] == ["GRPO"]
    names = {file.name for file in output.rglob("*")}
    assert "modeling_rsmoe.py" in names and not [
        name for name in names if name.endswith((".bin", ".pt", ".pth", ".pkl"))
    ]
    model, processor = RSMoEForConditionalGeneration.from_pretrained(output), RSMoEProcessor.from_pretrained(output)
    inputs = processor(images=image_folder / "0.png", text="Describe the image.", return_tensors="pt")
    assert processor.post_process_generation(model.generate(**inputs, return_dict_in_generate=True))[0]["text"]


def test_reward_of_train_grpo():
    reward = example("train_grpo").word_overlap
    completions = [[{"content": text}] for text in ("Two white planes", "a river", "")]
    assert reward(completions, text=["two planes .", "two planes", "two planes"]) == [2 * 2 / 6, 0, 0]


@pytest.mark.slow
def test_add_expert(checkpoint, data, tmp_path, capsys):
    output = tmp_path / "out"
    result = example("add_expert").main([str(checkpoint), str(data), str(output), "--epochs", "2", "--batch", "3"])
    assert list(result["expert_texts"]) == ["theme", "object", "relation", "counting"]
    assert [step.learned for step in read_facts(output / "trained").steps] == ["experts counting"]
    assert f"counting: {result['expert_texts']['counting']}" in capsys.readouterr().out
    rows = [json.loads(line) for line in (output / "examples.jsonl").read_text().splitlines()]
    prompt = f"<counting> {question_instruction('How many planes?')}"
    assert rows == [
        {"image": f"{i}.png", "kind": "expert", "expert": "counting", "prompt": prompt, "completions": [str(i)]}
        for i in range(6)
    ]

    trained = output / "trained"
    before, after = load_file(checkpoint / "model.safetensors"), load_file(trained / "model.safetensors")
    new = [name for name in after if name.startswith("model.experts.counting.")]
    assert new and before.keys() == after.keys() - set(new)
    embeddings = "model.language_model.embed_tokens.weight"
    assert after[embeddings].shape[0] == before[embeddings].shape[0] + 1
    after[embeddings] = after[embeddings][:-1]
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert any(after[name].abs().max() > 0 for name in new if name.endswith("lora_B"))

    model, processor = RSMoEForConditionalGeneration.from_pretrained(trained), RSMoEProcessor.from_pretrained(trained)
    assert model.config.expert_names == processor.experts == ["theme", "object", "relation", "counting"]
    asked = processor.render(Prompt.for_expert("counting", question_instruction("How many planes?"), "").text)
    inputs = processor(images=data / "0.png", text=asked, return_tensors="pt")
    written = model.generate(**inputs)[:, inputs["input_ids"].shape[1] :]
    assert processor.batch_decode(written, skip_special_tokens=True)[0].strip() == result["expert_texts"]["counting"]


def test_add_expert_says_what_is_wrong(checkpoint, image_folder, data, tmp_path, capsys):
    main = example("add_expert").main
    with pytest.raises(SystemExit, match="^error: .*metadata.jsonl"):
        main([str(checkpoint), str(image_folder), str(tmp_path / "out")])
    with pytest.raises(SystemExit, match=r"^error: .*config.json"):
        main([str(data), str(data), str(tmp_path / "out")])
    with pytest.raises(SystemExit):
        main([str(checkpoint), str(data), str(tmp_path)])
    assert f"{tmp_path} exists; give a new folder" in capsys.readouterr().err


@pytest.mark.slow
def test_merge_expert(checkpoint, tmp_path, capsys):
    output = tmp_path / "llm"
    assert example("merge_expert").main([str(checkpoint), str(output), "--expert", "relation"]) < 1e-5
    assert "LlamaForCausalLM" in capsys.readouterr().out
    code = """
import json, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
llm, tokenizer = (auto.from_pretrained(sys.argv[1]) for auto in (AutoModelForCausalLM, AutoTokenizer))
inputs = tokenizer("Where are the planes?", return_tensors="pt")
with torch.no_grad():
    print(json.dumps([inputs["input_ids"].tolist(), llm(**inputs).logits.tolist()]))
"""
    ids, logits = (torch.tensor(values) for values in json.loads(without_package(code, output)))
    model = RSMoEForConditionalGeneration.from_pretrained(checkpoint)
    with torch.no_grad():
        expected, base = (model(input_ids=ids, adapter_ids=torch.tensor([adapter])).logits for adapter in (4, 0))
    torch.testing.assert_close(logits, expected, atol=1e-5 * expected.abs().max().item(), rtol=0)
    assert (logits - base).abs().max() > 0.1
    assert not [file for file in output.iterdir() if file.suffix in (".py", ".bin")]
    assert not [file for file in output.glob("*.json") if "rsmoe" in file.read_text().lower()]


def test_merge_expert_says_what_is_wrong(checkpoint, tmp_path):
    with pytest.raises(SystemExit, match="^error: Unknown expert 'ship'; this model has theme, object, relation"):
        example("merge_expert").main([str(checkpoint), str(tmp_path / "llm"), "--expert", "ship"])
    assert not (tmp_path / "llm").exists()


@pytest.mark.slow
def test_probe_vision(checkpoint, data, capsys):
    main = example("probe_vision").main
    found = main([str(checkpoint), str(data), "--sizes", "28", "56", "--images", "12"])
    assert set(found) == {(28, 2), (56, 2)} and all(0 <= share <= 1 for share in found.values())
    lines = capsys.readouterr().out.strip().splitlines()
    assert len(lines) == 4 and lines[0] == "| size | ms / image | layer 2 |"
    with pytest.raises(SystemExit):
        main([str(checkpoint), str(data), "--layers", "3"])
    assert "layers 1 to 2" in capsys.readouterr().err


def test_the_probe_finds_what_is_there():
    """Features that tell the captions have a recall of 1, others that of chance."""
    recall = example("probe_vision").recall
    torch.manual_seed(0)
    texts, weights = torch.randn(240, 8), torch.randn(8, 32)
    texts = texts / texts.norm(dim=-1, keepdim=True)
    told = texts @ weights
    assert recall(told[:160], texts[:160], told[160:], texts[160:]) == 1
    noise = torch.randn(240, 32)
    assert recall(noise[:160], texts[:160], noise[160:], texts[160:]) < 0.4
