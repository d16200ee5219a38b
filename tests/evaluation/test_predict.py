"""Predictions: every system speaks, nothing depends on batches or interruptions, and files say whose they are."""

import json

import numpy as np
import pytest
from PIL import Image

from modeling_rsmoe import RSMoEError
from modeling_rsmoe.data.records import CaptionRecord, QuestionRecord
from modeling_rsmoe.evaluation.predict import Predictor, System, key_of, predict, read_predictions

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
    asked = [
        (0, "how many?"),
        (0, "a river here"),
        (1, "how many?"),
        (0, "is it a rural or an urban area"),
        (2, "why?"),
    ]
    return [QuestionRecord(folder / f"{index}.png", "Tiny", "test", text, "count", "1") for index, text in asked]


@pytest.fixture(scope="module")
def parts():
    return tiny_model(), tiny_processor()


FULL = System()


def predictor(parts, system=FULL, **generation):
    return Predictor(*parts, system, {"fusion": "rewrite", "max_new_tokens": 6, **generation})


def texts_of(lines):
    return {key: {k: v for k, v in line.items() if k not in ("seconds", "peak_memory")} for key, line in lines.items()}


@pytest.mark.parametrize("system", [System("full"), System("base"), System("experts:object"), System("full", False)])
@pytest.mark.parametrize("kind", ["captions", "questions"])
def test_batch_size_and_second_run_change_nothing(kind, system, parts, folder, tmp_path, request):
    records = request.getfixturevalue(kind)
    runs = [
        predict(predictor(parts, system), records, folder, tmp_path / f"{number}.jsonl", "run", batch)
        for number, batch in enumerate((1, 16, 16))
    ]
    one, many, again = map(texts_of, runs)
    assert one == many == again
    assert set(one) == {key_of(record, folder) for record in records}
    assert texts_of(read_predictions(tmp_path / "0.jsonl", "run")) == one
    spoken = [line.get("caption", line.get("answer")) for line in one.values()]
    seen = len(set(spoken))
    assert seen > 1 if system.sees_image or kind == "questions" else seen == 1


def test_full_model_tells_what_the_experts_said(parts, folder, captions, tmp_path):
    lines = predict(predictor(parts), captions, folder, tmp_path / "full.jsonl", "run", 2)
    line = lines["3.png", ""]
    assert {"image": "3.png", "dataset": "Tiny", "split": "test", "run": "run"}.items() <= line.items()
    assert list(line["parts"]) == list(line["router_prompts"]) == ["theme", "object", "relation"]
    assert line["seconds"] > 0 and line["peak_memory"] > 1e7
    alone = predict(predictor(parts, System("experts:theme")), captions, folder, tmp_path / "one.jsonl", "run", 2)
    assert [line["parts"]["theme"] for line in lines.values()] == [line["parts"]["theme"] for line in alone.values()]
    assert {line["caption"] for line in alone.values()} != {line["caption"] for line in lines.values()}


def test_some_of_the_experts(parts, folder, captions, tmp_path):
    """Their parts are those of the full model; the composer reads these alone."""
    model, processor = parts
    every = predict(predictor(parts), captions, folder, tmp_path / "full.jsonl", "run", 2)
    some = predict(predictor(parts, System("full:relation,theme")), captions, folder, tmp_path / "2.jsonl", "run", 2)
    for key, line in some.items():
        assert list(line["parts"]) == ["theme", "relation"]
        assert {name: every[key]["parts"][name] for name in line["parts"]} == line["parts"]
    assert {line["caption"] for line in some.values()} != {line["caption"] for line in every.values()}
    assert processor.experts == ["theme", "object", "relation"]


def test_llm_is_the_plain_generate_of_the_model(parts, folder, captions, tmp_path):
    model, processor = parts
    lines = predict(predictor(parts, System("base")), captions, folder, tmp_path / "llm.jsonl", "run", 4)
    inputs = processor(
        images=[str(captions[4].image)], text=["Describe the image."], expert_inputs=False, return_tensors="pt"
    )
    new = model.generate(**inputs, max_new_tokens=6)[:, inputs["input_ids"].shape[1] :]
    assert lines["4.png", ""]["caption"] == processor.batch_decode(new, skip_special_tokens=True)[0].strip()


def test_a_killed_run_goes_on(parts, folder, captions, tmp_path):
    file = tmp_path / "run.jsonl"
    whole = predict(predictor(parts), captions, folder, file, "run", 2)
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:3]) + lines[3][:20])  # killed while writing the fourth
    asked = []
    speaker = predictor(parts)

    class Counting:
        system = speaker.system

        def __call__(self, records):
            asked.extend(records)
            return speaker(records)

    told = []
    again = predict(Counting(), captions, folder, file, "run", 2, lambda done, total: told.append((done, total)))
    assert texts_of(again) == texts_of(whole)
    assert [record.image.name for record in asked] == ["3.png", "4.png"]
    assert told == [(3, 5), (5, 5)]
    assert texts_of(read_predictions(file, "run")) == texts_of(whole)


def test_files_of_others(tmp_path):
    file = tmp_path / "run.jsonl"
    assert read_predictions(file, "run") == {}
    file.write_text(json.dumps({"image": "a.png", "caption": "x", "run": "another"}) + "\n")
    with pytest.raises(RSMoEError, match="another checkpoint, system or setting.*delete"):
        read_predictions(file, "run")
    assert read_predictions(file)["a.png", ""]["caption"] == "x"
    file.write_text('{"image": "a.png", "question": "q", "answer": "yes"}')  # no newline at the end
    assert read_predictions(file) == {("a.png", "q"): {"image": "a.png", "question": "q", "answer": "yes"}}
    for wrong in ("[]", "{", '{"image": "a.png"}', '{"image": 1, "caption": "x"}', "\xff"):
        file.write_bytes((wrong + "\n").encode("latin-1"))
        with pytest.raises(RSMoEError, match="run.jsonl:1: not a prediction"):
            read_predictions(file)
    with pytest.raises(RSMoEError, match="not a file"):
        read_predictions(tmp_path)


def test_unknown_system(parts):
    with pytest.raises(
        RSMoEError,
        match='no "experts:sea".*full, full:NAME,NAME, llm, experts:theme, experts:object, experts:relation',
    ):
        Predictor(*parts, System("experts:sea"), {})
    for reader in ("full:", "full:sea", "full:theme,sea", "llm:theme"):
        with pytest.raises(RSMoEError, match=f'no "{reader}"'):
            Predictor(*parts, System(reader), {})
