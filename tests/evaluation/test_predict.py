"""Predictions: of every system, independent of batches and interruptions, in files that say whose they are."""

import json

import numpy as np
import pytest
from PIL import Image

from modeling_rsmoe import RSMoEError
from modeling_rsmoe.data.records import CaptionRecord, QuestionRecord
from modeling_rsmoe.evaluation.predict import key_of, key_of_line, predict, read_predictions
from modeling_rsmoe.inference import Predictor
from modeling_rsmoe.inference.resume import KeyedLog

from ..tiny import tiny_model, tiny_processor


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    draw = np.random.default_rng(0)
    for index in range(5):
        Image.fromarray(draw.integers(0, 255, (20 + index, 24, 3), dtype=np.uint8)).save(folder / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def captions(folder):
    return [CaptionRecord(folder / f"{index}.png", "Tiny", "test", ("a house .",)) for index in range(5)]


@pytest.fixture(scope="module")
def questions(folder):
    texts = [
        (0, "how many?"),
        (0, "a river here"),
        (1, "how many?"),
        (0, "is it a rural or an urban area"),
        (2, "why?"),
    ]
    return [QuestionRecord(folder / f"{index}.png", "Tiny", "test", text, "count", "1") for index, text in texts]


@pytest.fixture(scope="module")
def checkpoint():
    return tiny_model(), tiny_processor()


def predictor(checkpoint, system="full", **generation):
    return Predictor(*checkpoint, {"fusion": "rewrite", "max_new_tokens": 6, **generation}, system)


def run(predictor, records, folder, file, batch_size, **arguments):
    """The lines that a run finds or writes."""
    log = KeyedLog(file, {"system": predictor.system}, key_of_line)
    predict(predictor, records, folder, log, batch_size, **arguments)
    return log.lines


def texts_of(lines):
    return {key: {k: v for k, v in line.items() if k not in ("seconds", "peak_memory")} for key, line in lines.items()}


@pytest.mark.slow
@pytest.mark.parametrize(
    "system, sees_image", [("full", True), ("base", True), ("experts:object", True), ("full", False)]
)
@pytest.mark.parametrize("kind", ["captions", "questions"])
def test_batch_size_and_second_run_change_nothing(kind, system, sees_image, checkpoint, folder, tmp_path, request):
    records = request.getfixturevalue(kind)
    runs = [
        run(predictor(checkpoint, system), records, folder, tmp_path / f"{number}.jsonl", batch, sees_image=sees_image)
        for number, batch in enumerate((1, 16, 16))
    ]
    single, batched, again = map(texts_of, runs)
    assert single == batched == again
    assert set(single) == {key_of(record, folder) for record in records}
    assert texts_of(read_predictions(tmp_path / "0.jsonl")) == single
    different = len({line.get("caption", line.get("answer")) for line in single.values()})
    assert different > 1 if sees_image or kind == "questions" else different == 1


def test_full_model_says_what_the_experts_wrote(checkpoint, folder, captions, tmp_path):
    lines = run(predictor(checkpoint), captions, folder, tmp_path / "full.jsonl", 2)
    line = lines["3.png", ""]
    assert {"image": "3.png", "dataset": "Tiny", "split": "test"}.items() <= line.items()
    assert list(line["expert_texts"]) == list(line["router_prompts"]) == ["theme", "object", "relation"]
    assert line["seconds"] > 0 and line["peak_memory"] > 1e7
    alone = run(predictor(checkpoint, "experts:theme"), captions, folder, tmp_path / "theme.jsonl", 2)
    of_theme, of_theme_alone = (
        [line["expert_texts"]["theme"] for line in of_system.values()] for of_system in (lines, alone)
    )
    assert of_theme == of_theme_alone
    assert {line["caption"] for line in alone.values()} != {line["caption"] for line in lines.values()}


def test_some_of_the_experts(checkpoint, folder, captions, tmp_path):
    """Their texts are those of the full model; the base LM rewrites these alone."""
    model, processor = checkpoint
    full = run(predictor(checkpoint), captions, folder, tmp_path / "full.jsonl", 2)
    two = run(predictor(checkpoint, "full:relation,theme"), captions, folder, tmp_path / "two.jsonl", 2)
    for key, line in two.items():
        assert list(line["expert_texts"]) == ["theme", "relation"]
        assert {name: full[key]["expert_texts"][name] for name in line["expert_texts"]} == line["expert_texts"]
    assert {line["caption"] for line in two.values()} != {line["caption"] for line in full.values()}
    assert processor.experts == ["theme", "object", "relation"]


def test_base_is_the_plain_generate_of_the_model(checkpoint, folder, captions, tmp_path):
    model, processor = checkpoint
    lines = run(predictor(checkpoint, "base"), captions, folder, tmp_path / "base.jsonl", 4)
    inputs = processor(
        images=[str(captions[4].image)], text=["Describe the image."], expert_inputs=False, return_tensors="pt"
    )
    new = model.generate(**inputs, max_new_tokens=6)[:, inputs["input_ids"].shape[1] :]
    assert lines["4.png", ""]["caption"] == processor.batch_decode(new, skip_special_tokens=True)[0].strip()


def test_a_killed_run_continues(checkpoint, folder, captions, tmp_path, monkeypatch):
    file = tmp_path / "run.jsonl"
    complete = dict(run(predictor(checkpoint), captions, folder, file, 2))
    lines = file.read_text().splitlines(keepends=True)  # the first holds the settings
    file.write_text("".join(lines[:4]) + lines[4][:20])  # killed while writing the fourth
    speaker, encoded, reports = predictor(checkpoint), [], []
    encode = speaker.encode
    monkeypatch.setattr(speaker, "encode", lambda images: (encoded.extend(images), encode(images))[1])
    again = run(speaker, captions, folder, file, 2, progress=lambda *report: reports.append(report))
    assert texts_of(again) == texts_of(complete)
    assert [image.name for image in encoded] == ["3.png", "4.png"]
    assert reports == [("captioning images", 3, 5, "images"), ("captioning images", 5, 5, "images")]
    assert texts_of(read_predictions(file)) == texts_of(complete)


def test_files_of_others(checkpoint, folder, captions, tmp_path):
    file = tmp_path / "run.jsonl"
    file.write_text(json.dumps({"image": "a.png", "caption": "x"}) + "\n")
    with pytest.raises(RSMoEError, match="no unfinished run of this program.*delete"):
        run(predictor(checkpoint), captions, folder, file, 2)
    assert read_predictions(file)["a.png", ""]["caption"] == "x"
    file.write_text('{"settings": {"system": "base"}}\n{"image": "a.png", "caption": "x"}\n')
    with pytest.raises(RSMoEError, match='other settings \\(system: "base", now "full"\\).*delete'):
        run(predictor(checkpoint), captions, folder, file, 2)
    assert read_predictions(file)["a.png", ""]["caption"] == "x"
    file.write_text('{"image": "a.png", "question": "q", "answer": "yes"}')  # no newline at the end
    assert read_predictions(file) == {("a.png", "q"): {"image": "a.png", "question": "q", "answer": "yes"}}
    for wrong in ("[]", "{", '{"image": "a.png"}', '{"image": 1, "caption": "x"}', "\xff"):
        file.write_bytes((wrong + "\n").encode("latin-1"))
        with pytest.raises(RSMoEError, match="run.jsonl:1 is no line of this kind of file"):
            read_predictions(file)
    with pytest.raises(RSMoEError, match="not a file"):
        read_predictions(tmp_path)


def test_unknown_system(checkpoint):
    with pytest.raises(
        RSMoEError,
        match='no "experts:sea".*full, full:NAME,NAME, base, experts:theme, experts:object, experts:relation',
    ):
        predictor(checkpoint, "experts:sea")
    for system in ("full:", "full:sea", "full:theme,sea", "base:theme"):
        with pytest.raises(RSMoEError, match=f'no "{system}"'):
            predictor(checkpoint, system)
