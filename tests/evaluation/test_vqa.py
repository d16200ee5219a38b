"""Answers: their one spelling, ranges, accuracies against a direct count, guesses without an image."""

from pathlib import Path

import numpy as np
import pytest

from modeling_rsmoe.data.records import CaptionRecord, QuestionRecord
from modeling_rsmoe.errors_rsmoe import RSMoEError
from modeling_rsmoe.evaluation import baselines
from modeling_rsmoe.evaluation.vqa import RANGES, answer_range, normalize_answer, score_answers


METRIC = Path(baselines.__file__).parent / "metrics" / "vqa_accuracy"


def question(
    answer: str, kind: str = "presence", dataset: str = "RSVQA-LR", text: str = "Is there a road?"
) -> QuestionRecord:
    return QuestionRecord(Path("/data/a.png"), dataset, "val", text, kind, answer)


@pytest.mark.parametrize(
    ("answers", "spelled"),
    [
        (("yes", "Yes.", " YES "), "yes"),
        (("10632m2", "10632 m2", "10,632 m²", "10632 square meters", "10632.0"), "10632"),
        (("0m2", "0 m2", "zero", "None", "00"), "0"),
        (("thirty-four", "thirty four", "34"), "34"),
        (("twenty", "20."), "20"),
        (("rural", "a rural area", "The rural area."), "rural"),
        (("left, center and right", "left center and right"), "left center and right"),
        (("next to the road", "next to road"), "next to road"),
        (("a", "A."), "a"),
        (("0.5", "0.50"), "0.5"),
        (("", " . "), ""),
    ],
)
def test_answers_that_say_the_same_are_spelled_the_same(answers: tuple[str, ...], spelled: str) -> None:
    assert {normalize_answer(answer) for answer in answers} == {spelled}


@pytest.mark.parametrize(
    ("one", "other"), [("4", "There are 4."), ("yes", "Yes, it is."), ("5", "-5"), ("1", "1.5"), ("up", "top")]
)
def test_nothing_is_guessed(one: str, other: str) -> None:
    assert normalize_answer(one) != normalize_answer(other)


def test_ranges_of_the_rsvqa_paper() -> None:
    bounds = {0: "0", 1: "1-10", 10: "1-10", 11: "11-100", 100: "11-100", 101: "101-1000", 1000: "101-1000"}
    bounds |= {1001: ">1000", 1_000_000: ">1000"}
    assert {number: answer_range(f"{number}m2") for number in bounds} == bounds
    assert set(bounds.values()) == set(RANGES)
    for spelled in (
        "between 11 and 100",
        "between 10m2 and 100m2",
        "11-100",
        "11 to 100",
        "Between 11 m2 and 100 m2.",
    ):
        assert answer_range(spelled) == "11-100", spelled
    assert answer_range("more than 1,000 m2") == answer_range(">1000") == ">1000"
    assert [answer_range(text) for text in ("", "many", "-3", "between 5 and 7")] == [None] * 4


def test_scores_equal_a_direct_count() -> None:
    """Against a count written out plainly, on answers in every spelling."""
    generator = np.random.default_rng(0)
    spelled = {"0": ["0", "zero"], "7": ["7", "seven"], "9": ["9"], "55": ["55", "fifty-five"], "yes": ["yes", "Yes."]}
    spelled |= {"no": ["no"], "3000": ["3000m2", "3,000 m2"], "4000": ["4000m2"]}
    kinds = {
        ("RSVQA-LR", "count"): ["0", "7", "9", "55"],
        ("RSVQA-LR", "presence"): ["yes", "no"],
        ("RSVQA-HR", "area"): ["0", "3000", "4000"],
        ("RSVQA-HR", "count"): ["0", "7", "9"],
        ("RSIVQA-UCM", "count"): ["7", "9", "55"],
    }
    ranges = {"0": 0, "7": 1, "9": 1, "55": 2, "3000": 4, "4000": 4}
    questions, answers, right, exact = [], [], [], []
    for _ in range(300):
        dataset, kind = list(kinds)[generator.integers(len(kinds))]
        truth, said = generator.choice(kinds[dataset, kind], 2)
        questions.append(question(str(generator.choice(spelled[truth])), kind, dataset))
        answers.append(str(generator.choice(spelled[said])))
        exact.append(truth == said)
        in_ranges = (dataset == "RSVQA-LR" and kind == "count") or (dataset == "RSVQA-HR" and kind == "area")
        right.append(ranges[truth] == ranges[said] if in_ranges else truth == said)

    scored = score_answers(questions, answers, samples=50)

    of_type = {}
    for name in ("area", "count", "presence"):
        of_type[name] = [good for good, one in zip(right, questions) if one.question_type == name]
    expected = {"accuracy": sum(right) / 300, "average": sum(sum(one) / len(one) for one in of_type.values()) / 3}
    expected |= {f"accuracy: {name}": sum(one) / len(one) for name, one in of_type.items()}
    expected["exact"] = sum(exact) / 300
    assert expected["accuracy"] > expected["exact"]  # ranges matter here
    assert {name: score.value for name, score in scored.scores.items()} == pytest.approx(
        {name: 100 * value for name, value in expected.items()}
    )
    assert list(scored.scores) == list(expected)
    assert scored.each == [{"accuracy": 100.0 * good, "exact": 100.0 * same} for good, same in zip(right, exact)]
    for score in scored.scores.values():
        assert 0 <= score.low < score.value < score.high <= 100
    assert list(scored.notes) == ["Answers", "RSVQA-HR area", "RSVQA-LR count"]
    shuffled = generator.permutation(300)
    again = score_answers([questions[i] for i in shuffled], [answers[i] for i in shuffled], samples=50)
    assert again.scores == scored.scores


def test_average_interval_has_every_type_even_a_rare_one() -> None:
    """One rural question among many: most resamples miss it or repeat it; the interval must not become nan."""
    questions = [question("yes")] * 40 + [question("rural", "rural_urban")]
    average = score_answers(questions, ["yes"] * 30 + ["no"] * 10 + ["urban"], samples=200).scores["average"]
    assert average.value == pytest.approx(37.5) and 25 < average.low < average.value < average.high <= 100


def test_an_empty_answer_is_wrong() -> None:
    assert score_answers([question("...", "scene")], [""], samples=5).scores["accuracy"].value == 0


def test_questions_and_answers_must_belong_together() -> None:
    with pytest.raises(RSMoEError, match="no question"):
        score_answers([], [])
    with pytest.raises(RSMoEError, match="2 answers for 1 questions"):
        score_answers([question("yes")], ["yes", "no"])


def test_metric_loads_from_its_folder_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluate = pytest.importorskip("evaluate")
    monkeypatch.setattr("datasets.config.HF_MODULES_CACHE", str(tmp_path))
    questions = [question("yes"), question("17", "count"), question("10632m2", "area", "RSVQA-HR"), question("no")]
    answers = ["yes", "12", "1200 m2", "yes"]
    metric = evaluate.load(str(METRIC), cache_dir=str(tmp_path))
    found = metric.compute(
        predictions=answers,
        references=[one.answer for one in questions],
        question_types=[one.question_type for one in questions],
        datasets=[one.dataset for one in questions],
        samples=20,
        seed=3,
    )
    ours = score_answers(questions, answers, samples=20, seed=3).scores
    assert found.pop("intervals") == {name: [score.low, score.high] for name, score in ours.items()}
    assert found == {name: score.value for name, score in ours.items()}
    assert found["accuracy"] == 75 and found["exact"] == 25
    sentence = {"predictions": ["There are two ships."], "references": ["2"], "question_types": ["object quantity"]}
    with pytest.raises(RSMoEError, match=r"VRSBench are read by their questions; give questions="):
        metric.compute(**sentence, datasets=["VRSBench"])
    read = metric.compute(**sentence, datasets=["VRSBench"], questions=["How many ships are there?"])
    assert read["accuracy"] == 100 and read["exact"] == 0


# ---- guesses without an image


def test_constant_answer_counts_ranges_as_they_are_scored() -> None:
    train = [question(number, "count") for number in ("0", "0", "0", "2", "2", "5", "7", "40")]
    train += [question("yes"), question("urban", "rural_urban", "other")]
    questions = [question("?", "count"), question("?"), question("?", "unknown"), question("?", "count", "unknown")]
    # 1-10 has four answers, 0 only three; of 1-10 the most frequent is 2. Backing off: the dataset, then everything.
    assert baselines.constant_answers(train, questions) == ["2", "yes", "2", "2"]


def test_question_only_answers_by_text_then_by_the_nearest_text() -> None:
    train = [question("no", text="Is there a road?")] * 2 + [question("yes", text="is there a road")]
    train += [question("yes", text="Are there more roads than farms?")] * 3
    train += [question("no", text="Are there less roads than farms?")]
    questions = [
        question("?", text="Is there a ROAD?"),
        question("?", text="Are there less roads than grass areas?"),
        question("?", text="Are there more roads than grass areas?"),
        question("?", "scene", text="Is there a road?"),
        question("?", "scene", "other", text="Which scene?"),
    ]
    assert baselines.question_only_answers(train, questions) == ["no", "no", "yes", "no", "yes"]


def test_constant_caption_is_the_most_frequent_one_in_its_most_frequent_spelling() -> None:
    texts = [("Trees .", "a road"), ("trees.", "A road."), ("Trees .", "a river")]
    records = [CaptionRecord(Path("/data/a.png"), "RSICD", "train", captions) for captions in texts]
    assert baselines.constant_caption(records) == "Trees ."


@pytest.mark.parametrize("guess", [baselines.constant_answers, baselines.question_only_answers])
def test_guesses_need_training_records(guess: object) -> None:
    with pytest.raises(RSMoEError, match="needs a train split"):
        guess([], [question("?")])  # type: ignore[operator]
    with pytest.raises(RSMoEError, match="needs a train split"):
        baselines.constant_caption([])
