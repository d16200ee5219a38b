"""METEOR: its formula worked by hand, and the protocol of its Java program (test_captions compares with it)."""

import sys
from pathlib import Path

import numpy as np
import pytest

from modeling_rsmoe.errors_rsmoe import RSMoEError
from modeling_rsmoe.evaluation import meteor


# What the program wrote about "a dog was running", which fits "the dog ran home" best: of four words each, the
# prediction's "a" and "was" and the reference's "the" are function words; "dog" is the same word in both,
# "was running" paraphrases "ran", in one chunk.
LINE = "4.0 4.0 2.0 1.0 1.0 1.0 0.0 0.0 0.0 0.0 0.0 0.0 0.0 0.0 0.0 0.0 1.0 1.0 1.0 0.0 1.0 3.0 2.0"
IDENTICAL = "2.0 2.0 1.0 1.0 1.0 1.0 1.0 1.0 0.0 0.0 0.0 0.0 0.0 0.0 0.0 0.0 0.0 0.0 0.0 0.0 1.0 2.0 2.0"
NOTHING = " ".join(["0.0", "2.0", "0.0", "1.0"] + 19 * ["0.0"])


FAKE = """#!{python}
import sys
from pathlib import Path

folder = Path(__file__).parent
with (folder / "starts").open("a") as file:
    file.write("started\\n")
answers = (folder / "answers").read_text().splitlines()
for line in sys.stdin:
    with (folder / "received").open("a") as file:
        file.write(line)
    if not answers:
        sys.exit("no memory")
    print(answers.pop(0), flush=True)
"""


@pytest.fixture
def program(tmp_path):
    """Stands for the Java program: writes the lines of the file `answers`, one for each line that it receives."""
    pytest.importorskip("pycocoevalcap")

    class Program:
        path = str(tmp_path / "java")

        def will_answer(self, *lines):
            (tmp_path / "answers").write_text("".join(f"{line}\n" for line in lines))

        def read(self, name):
            return (tmp_path / name).read_text()

    Path(Program.path).write_text(FAKE.format(python=sys.executable))
    Path(Program.path).chmod(0o755)
    yield Program()
    meteor._program.cache_clear()


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
    program.will_answer(IDENTICAL, NOTHING)
    found = meteor.statistics(["a dog", ""], [["a dog"], ["a dog"]], program.path)
    assert meteor.score(found) == pytest.approx([1, 0])
    assert meteor.score(found[[0, 0, 0]].sum(0)) == pytest.approx(1)


def test_a_set_is_scored_by_its_sums():
    both = np.stack([counts(LINE), counts(NOTHING)])
    assert meteor.score(both.sum(0)) != pytest.approx(meteor.score(both).mean())
    assert meteor.score(both).shape == (2,)


def test_each_caption_is_sent_once_without_repeated_references(program):
    program.will_answer(LINE, NOTHING)
    found = meteor.statistics(["x", "", "x"], [["a", "b", "a"], ["c"], ["a", "b"]], program.path)
    assert program.read("received") == "SCORE ||| a ||| b ||| x\nSCORE ||| c ||| \n"
    assert found.tolist() == [counts(LINE).tolist(), counts(NOTHING).tolist(), counts(LINE).tolist()]


def test_the_mark_of_the_protocol_goes_from_texts(program):
    program.will_answer(LINE)
    meteor.statistics(["a ||| b"], [["c |||| d", "|||"]], program.path)
    assert program.read("received") == "SCORE ||| c | d |||  ||| a b\n"


def test_one_program_serves_all_calls(program):
    program.will_answer(LINE, NOTHING, *[LINE] * 5000)
    meteor.statistics(["x", "y"], [["a"], ["b"]], program.path)
    many = [f"a caption with enough words to fill a pipe, number {number}" for number in range(5000)]
    assert len(meteor.statistics(many, [["a"]] * 5000, program.path)) == 5000
    assert program.read("starts") == "started\n"


@pytest.mark.parametrize(
    ("answers", "message"), [([], "no memory"), (["1.0 2.0"], "1.0 2.0"), (["No file"], "No file")]
)
def test_a_program_that_fails_is_reported_and_started_again(program, answers, message):
    program.will_answer(*answers)
    with pytest.raises(RSMoEError, match=f"failed on 1 captions: {message}"):
        meteor.statistics(["a dog"], [["a dog"]], program.path)
    program.will_answer(LINE)
    assert meteor.statistics(["a dog"], [["a dog"]], program.path).tolist() == [counts(LINE).tolist()]
    assert program.read("starts") == "started\nstarted\n"
