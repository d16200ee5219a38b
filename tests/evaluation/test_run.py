"""One evaluation: what is selected, what is refused, and results that equal the metrics called by hand."""

import json

import pytest
from PIL import Image

from modeling_rsmoe import RSMoEError
from modeling_rsmoe.data.records import read_questions
from modeling_rsmoe.evaluation.captions import score_captions
from modeling_rsmoe.evaluation.run import baseline_texts, evaluate, generation_settings, select
from modeling_rsmoe.evaluation.vqa import score_answers
from modeling_rsmoe.inference import GenerationSettings
from modeling_rsmoe.prompting_rsmoe import DEFAULT_INSTRUCTION, question_instruction


CAPTIONS = {
    ("A", "train"): [["a river .", "a river ."], ["many green trees ."]],
    ("A", "test"): [["a wide river flows here ."], ["many trees are green ."], ["a road crosses a river ."]],
    ("B", "test"): [["a gray bridge ."], ["a white plane ."]],
}
QUESTIONS = {
    ("L", "train"): [("is there a road?", "presence", "yes"), ("how many roads?", "count", "3")],
    ("L", "test"): [("is there a road?", "presence", "yes"), ("how many houses?", "count", "2")],
    ("H", "test"): [("is there a lake?", "presence", "no")],
}


pytestmark = pytest.mark.usefixtures("without_java")


@pytest.fixture
def folder(tmp_path):
    lines = []
    for (dataset, split), images in CAPTIONS.items():
        for index, captions in enumerate(images):
            name = f"{dataset}-{split}-{index}.png"
            Image.new("RGB", (8, 8), (index, 0, 0)).save(tmp_path / name)
            lines.append({"image": name, "dataset": dataset, "split": split, "captions": captions})
    write(tmp_path / "captions.jsonl", lines)
    lines = []
    for (dataset, split), questions in QUESTIONS.items():
        name = f"{dataset}-{split}.png"
        Image.new("RGB", (8, 8)).save(tmp_path / name)
        keys = ("question", "question_type", "answer")
        lines += [
            {"image": name, "dataset": dataset, "split": split, **dict(zip(keys, values))} for values in questions
        ]
    write(tmp_path / "vqa.jsonl", lines)
    return tmp_path


def write(file, lines):
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))


def predicted(selection, text="a river ."):
    name = "caption" if selection.task == "captioning" else "answer"
    return {
        (record.image.name, getattr(record, "question", "")): {name: text, "seconds": 0.5}
        for record in selection.all()
    }


def test_results_are_those_of_the_metrics(folder):
    selection = select(folder, "captioning", "test")
    results = {each.result["dataset"]: each for each in evaluate(selection, predicted(selection))}
    assert list(results) == ["A", "B"]
    references = {f"A-test-{index}.png": captions for index, captions in enumerate(CAPTIONS["A", "test"])}
    learned = ["a river .", "many green trees ."]
    expected = score_captions(references, dict.fromkeys(references, "a river ."), learned)
    assert results["A"].scored == expected
    found = results["A"].result
    assert found["scores"]["CIDEr-D"]["value"] == expected.scores["CIDEr-D"].value > 0
    assert found["scores"]["novel"]["value"] == 0
    assert (found["images"], found["items"], found["limit"], found["seconds_per_image"]) == (3, 3, None, 0.5)
    # The most frequent training caption happens to be what was said.
    assert found["baselines"]["constant"] == found["scores"]
    # B has no train split: its constant caption comes from all training captions.
    assert baseline_texts(selection, "constant", selection.records["B"]) == ["a river ."] * 2


def test_answers_are_scored_by_dataset_and_pooled(folder):
    selection = select(folder, "vqa", "test")
    results = {each.result["dataset"]: each.result for each in evaluate(selection, predicted(selection, "yes"))}
    assert {name: result["scores"]["accuracy"]["value"] for name, result in results.items()} == pytest.approx(
        {"L": 50, "H": 0, "all": 100 / 3}
    )
    assert results["all"]["scores"]["accuracy"]["value"] == pytest.approx(
        score_answers(read_questions(folder, "test"), ["yes"] * 3).scores["accuracy"].value
    )
    assert list(results["L"]["baselines"]) == ["constant", "question-only"]


def test_expert_texts_of_the_full_model_are_scored_alone(folder):
    selection = select(folder, "captioning", "test", ["A"])
    lines = predicted(selection)
    for line in lines.values():
        line["expert_texts"] = {"theme": "a wide river", "object": ""}
    scores = evaluate(selection, lines)[0].result["expert_texts"]
    assert list(scores) == ["theme", "object"]
    assert scores["theme"]["BLEU-1"]["value"] > scores["object"]["BLEU-1"]["value"] == 0


def test_without_training_records_there_are_no_baselines(folder):
    lines = (folder / "captions.jsonl").read_text().splitlines(keepends=True)
    (folder / "captions.jsonl").write_text("".join(line for line in lines if '"train"' not in line))
    selection = select(folder, "captioning", "test")
    result = evaluate(selection, predicted(selection))[0].result
    assert result["baselines"] == {} and "novel" not in result["scores"]
    with pytest.raises(RSMoEError, match="train split"):
        baseline_texts(selection, "constant", selection.records["A"])


def test_limit_is_spread_over_the_file(folder):
    chosen = select(folder, "captioning", "test", limit=2).records
    assert [record.image.name for record in chosen["A"]] == ["A-test-0.png", "A-test-1.png"]
    assert [len(records) for records in chosen.values()] == [2, 2]
    many = select(folder, "captioning", "test", limit=99)
    assert [len(records) for records in many.records.values()] == [3, 2]


def test_unseen_captions_are_a_split_of_their_own(folder):
    """It has a name of its own in the report, and the limit is of what is left."""
    lines = (folder / "captions.jsonl").read_text().replace("a wide river flows here .", "A river")
    (folder / "captions.jsonl").write_text(lines)
    chosen = select(folder, "captioning", "test", unseen=True)
    assert [record.image.name for record in chosen.records["A"]] == ["A-test-1.png", "A-test-2.png"]
    assert [len(records) for records in chosen.records.values()] == [2, 2]
    selection = select(folder, "captioning", "test", ["A"], limit=1, unseen=True)
    (evaluated,) = evaluate(selection, predicted(selection))
    assert (evaluated.result["split"], evaluated.result["images"]) == ("unseen test", 1)
    (folder / "captions.jsonl").write_text(
        lines.replace("a gray bridge", "a river").replace("a white plane", "a river")
    )
    with pytest.raises(RSMoEError, match='split "test" of B has only captions that stand in "train"'):
        select(folder, "captioning", "test", unseen=True)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("captioning", "tset"), 'unknown split "tset".*known: test, train'),
        (("captioning", "test", ["L"]), 'unknown dataset "L".*known: A, B'),
        (("captioning", "train", ["A", "B"]), 'dataset "B" has no split "train"; it has test'),
        (("vqa", "test", ["A"]), 'unknown dataset "A".*known: H, L'),
    ],
)
def test_unknown_names(arguments, message, folder):
    with pytest.raises(RSMoEError, match=message):
        select(folder, *arguments)


def test_images_that_stand_twice(folder):
    lines = (folder / "captions.jsonl").read_text()
    line = next(line for line in lines.splitlines() if "A-test-1" in line)
    (folder / "captions.jsonl").write_text(lines + line + "\n")
    with pytest.raises(RSMoEError, match='image "A-test-1.png" stands 2 times in this split of A; merge'):
        select(folder, "captioning", "test")
    (folder / "captions.jsonl").write_text(lines + line.replace('"test"', '"train"') + "\n")
    with pytest.raises(RSMoEError, match='"A-test-1.png" of A stands in split "test" and in "train"'):
        select(folder, "captioning", "test")
    questions = (folder / "vqa.jsonl").read_text()
    (folder / "vqa.jsonl").write_text(questions + questions.splitlines()[-1] + "\n")
    with pytest.raises(RSMoEError, match='question "is there a lake\\?" of image "H-test.png" stands 2 times'):
        select(folder, "vqa", "test")


def test_missing_predictions_are_counted(folder):
    selection = select(folder, "vqa", "test")
    lines = predicted(selection)
    lines.pop(("H-test.png", "is there a lake?"))
    with pytest.raises(RSMoEError, match=r"no prediction for H-test.png / is there a lake\? \(1 of 3 are missing\)"):
        evaluate(selection, lines)


@pytest.mark.parametrize(
    "system, config, arguments, expected",
    [
        ("full", {"fusion": "auto"}, {}, {"fusion": "rerank"}),
        ("full", {}, {"num_beams": 3}, {"num_beams": 3, "fusion": "rerank"}),
        (
            "full",
            {"fusion": "rewrite", "router_mode": "template"},
            {},
            {"router_mode": "template", "fusion": "rewrite"},
        ),
        ("full:theme", {"fusion": "rewrite"}, {"fusion": "auto"}, {"fusion": "rerank"}),
        ("base", {"fusion": "auto", "do_sample": False, "router_mode": "none"}, {}, {"do_sample": False}),
        ("experts:theme", {"router_mode": "none"}, {"fusion": "concat"}, {"router_mode": "none"}),
    ],
)
def test_settings_are_those_that_bear_on_the_texts(tmp_path, system, config, arguments, expected):
    """Of a captioning run by a model with a reranker; the fusion is what "auto" comes to."""
    (tmp_path / "config.json").write_text(json.dumps({"reranker_rank": 4}))
    (tmp_path / "generation_config.json").write_text(json.dumps(config))
    settings = GenerationSettings(**arguments)
    assert generation_settings(tmp_path, system, DEFAULT_INSTRUCTION, settings) == expected
    if expected.get("fusion") == "rerank":
        question = question_instruction("Is there a road?")
        assert generation_settings(tmp_path, system, question, settings) == expected | {"fusion": "rewrite"}
        (tmp_path / "config.json").write_text("{}")
        assert generation_settings(tmp_path, system, DEFAULT_INSTRUCTION, settings) == expected | {"fusion": "rewrite"}
