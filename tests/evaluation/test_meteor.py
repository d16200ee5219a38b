"""METEOR: its formula worked by hand, and the protocol of its Java program. test_captions compares it with the program."""

import subprocess

import numpy as np
import pytest

from modeling_rsmoe.errors_rsmoe import RSMoEError
from modeling_rsmoe.evaluation import meteor


# What the program wrote about "a dog was running", which fits "the dog ran home" best: of four words each, the
# prediction's "a" and "was" and the reference's "the" are function words; "dog" is the same word in both, "was running"
# paraphrases "ran", in one chunk.
LINE = "4.0 4.0 2.0 1.0 1.0 1.0 0.0 0.0 0.0 0.0 0.0 0.0 0.0 0.0 0.0 0.0 1.0 1.0 1.0 0.0 1.0 3.0 2.0"
IDENTICAL = "2.0 2.0 1.0 1.0 1.0 1.0 1.0 1.0 0.0 0.0 0.0 0.0 0.0 0.0 0.0 0.0 0.0 0.0 0.0 0.0 1.0 2.0 2.0"
NOTHING = " ".join(["0.0", "2.0", "0.0", "1.0"] + 19 * ["0.0"])


@pytest.fixture
def program(monkeypatch):
    """Stands for the Java program: `answer` is what it writes, `asked` what it was told."""
    pytest.importorskip("pycocoevalcap")

    class Program:
        answer, code, asked = "", 0, ""

        def run(self, command, input, **kwargs):
            self.asked = input.decode()
            return subprocess.CompletedProcess(command, self.code, self.answer.encode(), b"no memory")

    program = Program()
    monkeypatch.setattr(subprocess, "run", program.run)
    return program


def counts(line: str) -> np.ndarray:
    return np.array([float(number) for number in line.split()])


def test_the_formula_by_hand():
    # Weighted words: prediction 0.75 * 2 + 0.25 * 2, reference 0.75 * 3 + 0.25 * 1. Weighted matches: "dog" 0.75, of
    # the paraphrase 0.6 * (0.75 + 0.25) in the prediction and 0.6 * 0.75 in the reference.
    precision, recall = (0.75 + 0.6) / 2, (0.75 + 0.45) / 2.5
    mean = 1 / (0.15 / precision + 0.85 / recall)
    penalty = 0.6 * (1 / 2.5) ** 0.2
    assert meteor.score(counts(LINE)) == pytest.approx(mean * (1 - penalty))


def test_identical_captions_score_full_alone_and_in_a_set(program):
    program.answer = f"{IDENTICAL}\n{NOTHING}\n"
    found = meteor.statistics(["a dog", ""], [["a dog"], ["a dog"]], "java")
    assert meteor.score(found) == pytest.approx([1, 0])
    assert meteor.score(found[[0, 0, 0]].sum(0)) == pytest.approx(1)


def test_a_set_is_scored_by_its_sums():
    both = np.stack([counts(LINE), counts(NOTHING)])
    assert meteor.score(both.sum(0)) != pytest.approx(meteor.score(both).mean())
    assert meteor.score(both).shape == (2,)


def test_each_question_is_asked_once_without_repeated_references(program):
    program.answer = f"{LINE}\n{NOTHING}\n"
    found = meteor.statistics(["x", "", "x"], [["a", "b", "a"], ["c"], ["a", "b"]], "java")
    assert program.asked == "SCORE ||| a ||| b ||| x\nSCORE ||| c ||| \n"
    assert found.tolist() == [counts(LINE).tolist(), counts(NOTHING).tolist(), counts(LINE).tolist()]


def test_the_mark_of_the_protocol_goes_from_texts(program):
    program.answer = f"{LINE}\n"
    meteor.statistics(["a ||| b"], [["c |||| d", "|||"]], "java")
    assert program.asked == "SCORE ||| c | d |||  ||| a b\n"


@pytest.mark.parametrize(
    ("answer", "code"), [("", 0), (LINE, 1), (f"{LINE}\n{LINE}\n", 0), ("1.0 2.0\n", 0), ("Error: no file\n", 0)]
)
def test_a_program_that_fails_is_reported(program, answer, code):
    program.answer, program.code = answer, code
    with pytest.raises(RSMoEError, match=rf"failed on 1 captions \(exit {code}\): no memory"):
        meteor.statistics(["a dog"], [["a dog"]], "java")
