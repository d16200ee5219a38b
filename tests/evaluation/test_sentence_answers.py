"""What sentence answers say: forms as published in RSIEval and VRSBench, and traps."""

from pathlib import Path

import pytest

from modeling_rsmoe.data.records import QuestionRecord
from modeling_rsmoe.evaluation.sentence_answers import read_answer
from modeling_rsmoe.evaluation.spelling import normalize_answer
from modeling_rsmoe.evaluation.vqa import SENTENCES, comparable_answer, score_answers


HOW_MANY = "How many planes are there in this image?"
IS_THERE = "Are there buildings in the image?"
WHERE = "Where is the parking lot located in the image?"
RELATIVE = "What is the relative position between the building and the plane in the image?"
COLOR = "What color is the roof of the house in the image?"
KIND = "Is this image a panchromatic image or a color image?"
SCENE = "What scene does the image depict?"
ROAD = "What is the direction of the road in the picture?"
CORNER = "What is in the upper left corner of the image?"


@pytest.mark.parametrize(
    ("question", "answers", "said"),
    [
        (HOW_MANY, ("There are seven planes in the image.", "Seven.", "7", "I count 7 planes."), "7"),
        (HOW_MANY, ("There is one plane in the image.", "One.", "There is a plane.", "a single plane: 1"), "1"),
        (HOW_MANY, ("There are twenty-two planes.", "Twenty two", "22 planes"), "22"),
        (HOW_MANY, ("There are no planes in the image.", "None.", "zero", "There aren't any planes."), "0"),
        (HOW_MANY, ("A lot of.", "Many planes.", "There are numerous planes."), "many"),
        (HOW_MANY, ("more than 100", "Over one hundred planes.", "> 100"), "more than 100"),
        (HOW_MANY, ("no more than two", "At most 2.", "up to two planes"), "at most 2"),
        (HOW_MANY, ("a dozen", "There are a dozen planes.", "12"), "12"),
        (HOW_MANY, ("two dozen", "24"), "24"),
        (HOW_MANY, ("half a dozen", "six"), "6"),
        (HOW_MANY, ("1,000", "one thousand planes"), "1000"),
        (HOW_MANY, ("one hundred and five", "105"), "105"),
        (IS_THERE, ("Yes.", "yes", "Yes, there is a building.", "There are three buildings.", "It does."), "yes"),
        (IS_THERE, ("There is a road that is not straight.", "The image contains buildings with no roof."), "yes"),
        (IS_THERE, ("No.", "no buildings", "There is no building in the image.", "None.", "No, there are not."), "no"),
        (IS_THERE, ("The image does not contain buildings.", "Buildings are not visible.", "There isn't any."), "no"),
        ("Does the road run from left to right?", ("No. The road runs in a north-south direction.", "no"), "no"),
        (WHERE, ("Lower part.", "The bottom of the image", "lower side", "It is in the lower part."), "bottom"),
        (WHERE, ("Upper-right corner.", "The top right corner of the image.", "in the upper right"), "right top"),
        (RELATIVE, ("The building is to the right of the plane.", "on the right side of the plane"), "right plane"),
        (COLOR, ("Brown.", "The roof is brown.", "brown color"), "brown"),
        (COLOR, ("Yellow and White.", "white and yellow", "White, yellow"), "white and yellow"),
        (COLOR, ("White, Black, Gray, and Red.", "red, grey, black and white"), "black and gray and red and white"),
        (KIND, ("Color image.", "A color image.", "color", "It is a color image."), "color"),
        (SCENE, ("Residential area.", "residential", "The image depicts a residential area."), "residential"),
        (SCENE, ("Urban scene.", "Urban."), "urban"),
        (ROAD, ("North-south.", "South-north", "The road runs in a north-south direction."), "north south"),
        (CORNER, ("Trees.", "tree", "Trees are in the upper left corner.", "There are trees."), "tree"),
        (CORNER, ("small-vehicle", "Small vehicle", "A small vehicle."), "small vehicle"),
        (CORNER, ("two buses", "2 bus"), "2 bus"),
    ],
)
def test_answers_that_say_the_same(question: str, answers: tuple[str, ...], said: str) -> None:
    assert {answer: read_answer(answer, question) for answer in answers} == dict.fromkeys(answers, said)


@pytest.mark.parametrize(
    ("question", "one", "other"),
    [
        (HOW_MANY, "1", "One of the planes is white."),
        (HOW_MANY, "2", "no more than two"),
        (HOW_MANY, "20", "about twenty"),
        (HOW_MANY, "100", "more than 100"),
        (HOW_MANY, "7", "7 large and 8 small planes"),
        (HOW_MANY, "3", "3 or 4"),
        (HOW_MANY, "10", "5-10"),
        (HOW_MANY, "0", "It is not possible to tell."),
        (HOW_MANY, "1", "a few planes"),
        (HOW_MANY, "12", "dozens of planes"),
        (HOW_MANY, "2", "the 2nd plane"),
        (IS_THERE, "yes", "no buildings"),
        (IS_THERE, "no", "The image is too blurry to determine."),
        (IS_THERE, "no", "I cannot tell."),
        (IS_THERE, "yes", "maybe"),
        (IS_THERE, "no", "Northern buildings."),
        (RELATIVE, "The building is to the right of the plane.", "The plane is to the right of the building."),
        (RELATIVE, "The storage tanks are underneath the trees.", "The storage tanks are above the trees."),
        (CORNER, "Trees are in the upper left corner.", "Buildings are in the upper left corner."),
        (COLOR, "white", "not white"),
        (COLOR, "white", "white and blue"),
        (SCENE, "residential area", "industrial area"),
        (WHERE, "left", "right"),
        (WHERE, "Where?", ""),
    ],
)
def test_traps(question: str, one: str, other: str) -> None:
    assert read_answer(one, question) != read_answer(other, question)


def test_answers_of_one_word_are_their_spelling() -> None:
    for question in (HOW_MANY, IS_THERE, WHERE, COLOR):
        for answer in ("yes", "12", "rural", "white"):
            assert read_answer(answer, question) == normalize_answer(answer)


def test_both_scores_stand_side_by_side() -> None:
    rows = [
        ("quantity", HOW_MANY, "There are seven planes in the image.", "7"),
        ("presence", IS_THERE, "Yes.", "yes"),
        ("presence", IS_THERE, "No.", "There is a building."),
        ("color", COLOR, "Brown.", "The roof is brown."),
    ]
    records = [QuestionRecord(Path("a.png"), "RSIEval", "test", text, kind, said) for kind, text, said, _ in rows]
    scored = score_answers(records, [answer for *_, answer in rows], samples=20)
    values = {name: score.value for name, score in scored.scores.items()}
    assert values["accuracy"] == 75 and values["exact"] == 25
    assert values["accuracy: quantity"] == values["accuracy: color"] == 100 and values["accuracy: presence"] == 50
    assert [one["exact"] for one in scored.each] == [0, 100, 0, 0]
    assert "RSIEval answers" in scored.notes


@pytest.mark.parametrize("dataset", ["RSVQA-LR", "RSVQA-HR", "RSIVQA-UCM", "RSIVQA-RSICD", "Own"])
def test_other_datasets_are_compared_as_they_are_spelled(dataset: str) -> None:
    """Their scores are those of before sentences were read."""
    assert dataset not in SENTENCES
    for answer in ("Yes, it is.", "There are 4.", "no buildings", "The roof is white.", "a dozen", "rural area"):
        assert comparable_answer(answer, dataset, "presence", IS_THERE) == normalize_answer(answer)
        assert comparable_answer(answer, dataset, "scene", HOW_MANY) == normalize_answer(answer)
