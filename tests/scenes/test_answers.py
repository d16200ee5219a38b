"""How the answers of tiles become one, and what is said about it."""

import pytest

from modeling_rsmoe.scenes.answers import combine


@pytest.mark.parametrize(
    ("question", "answers", "expected", "how"),
    [
        ("Is there a ship?", ["no", "Yes", "no"], "yes", "1 of 3 tiles said yes, and one is enough"),
        ("Is there a ship?", ["no", "no."], "no", "none of 2 tiles said yes"),
        ("Are there more roads than houses?", ["yes", "no", "no"], "no", "the most frequent answer, of 2 of 3 tiles"),
        ("How many ships are there?", ["3", "12 ships", "two"], "17", "the sum over 3 tiles; what an edge"),
        ("How many ships are there?", ["1,203", "many"], "1203", r"the sum over 1 tile \(1 tile gave no number\)"),
        ("What is the area covered by houses?", ["10632m2", "0"], "10632m2", "the sum over 2 tiles"),
        ("How many ships are there?", ["10 m2", "3 ha"], "10 m2", "the most frequent answer"),
        ("How many ships are there?", ["many", "many", "none"], "many", r"2 of 3 tiles \(others: none 1\)"),
        ("Is it rural or urban?", ["Rural", "urban", "urban"], "urban", r"2 of 3 tiles \(others: rural 1\)"),
        ("Is there a ship?", ["yes", "a ship"], "yes", "the most frequent answer"),
        ("What is it?", ["", "", "x"], "", r"\(others: x 1\)"),
        ("In which year?", ["3", "4", "4"], "4", "the most frequent answer"),
        ("What is it?", list("abcdefgh"), "a", r"of 1 of 8 tiles \(others: b 1, c 1, d 1, e 1, f 1, 2 more\)"),
    ],
)
def test_combining(question: str, answers: list[str], expected: str, how: str) -> None:
    import re

    combined = combine(question, answers, [1.0] * len(answers))
    assert combined.answer == expected and re.search(how, combined.how), combined.how


def test_what_several_tiles_cover_counts_once() -> None:
    combined = combine("How many ships are there?", ["10", "10"], [0.75, 0.75])
    assert combined.answer == "15" and "overlaps shared out evenly" in combined.how
