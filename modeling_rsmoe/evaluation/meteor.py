"""METEOR 1.5 of pycocoevalcap: its Java program counts the matches, the score is computed from the counts here.

pycocoevalcap's wrapper waits after each line and gives only final scores. Here all lines go to one process together,
and the score of any sample of images follows from the sums of its counts, as an interval needs.

Source: Denkowski and Lavie 2014, "Meteor Universal", equations 1 to 6; the parameters are those of English ("-l en").
"""

import atexit
import contextlib
import functools
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..errors_rsmoe import RSMoEError
from ..utils.extras import require
from .intervals import Array


ALPHA, BETA, GAMMA, DELTA = 0.85, 0.2, 0.6, 0.75
WEIGHTS = np.array([1.0, 0.6, 0.8, 0.6])  # of matches by the same word, stem, synonym, paraphrase
COUNTS = 23  # numbers that the program writes about a caption; `score` names them

Pair = tuple[str, tuple[str, ...]]  # a caption and its references


def statistics(predictions: Sequence[str], references: Sequence[Sequence[str]], java: str) -> Array:
    """What METEOR counts for each caption against the reference it fits best.

    Args:
        predictions: tokenized captions.
        references: tokenized references of each caption, at least one each.
        java: path of the Java program.

    Returns:
        ``[captions, 23]``, for `score`.

    Raises:
        RSMoEError: when the Java program fails.
    """
    # A repeated reference cannot change which one fits best, and many captions are repeated with their references.
    pairs = [(text, tuple(dict.fromkeys(group))) for text, group in zip(predictions, references, strict=True)]
    counts_of = _counts_of(list(dict.fromkeys(pairs)), java)
    counts = np.array([counts_of[pair] for pair in pairs]).reshape(-1, COUNTS)
    # A caption that equals its reference is not fragmented: its one chunk does not count, alone or in a set.
    matches = counts[:, 4:20].reshape(-1, 8, 2).sum(1)  # [captions, 2]: of the prediction, of the reference
    counts[(matches == counts[:, 0:2]).all(1) & (counts[:, 20] == 1), 20] = 0
    return counts


def score(counts: Array) -> Array:
    """METEOR (0 to 1) of counts ``[..., 23]``: of one caption, or of a whole set from the sum of its captions' counts.

    A set's score is thus not the mean of its captions' scores.

    Args:
        counts: of `statistics`, or sums of them.
    """
    length, function_words = counts[..., 0:2], counts[..., 2:4]  # [..., 2]: of the prediction, of the reference
    matches = counts[..., 4:20].reshape(*counts.shape[:-1], 4, 2, 2)  # [..., kind of match, content or function, 2]
    chunks, matched = counts[..., 20], counts[..., 21:23]
    share = np.array([DELTA, 1 - DELTA])  # content words count more than function words
    weighted_matches = np.einsum("...mcs,m,c->...s", matches, WEIGHTS, share)
    weighted_length = DELTA * (length - function_words) + (1 - DELTA) * function_words
    with np.errstate(divide="ignore", invalid="ignore"):
        precision, recall = np.moveaxis(weighted_matches / weighted_length, -1, 0)
        mean = 1 / ((1 - ALPHA) / precision + ALPHA / recall)
        fragmentation = chunks / (matched.sum(-1) / 2)
        value = mean * (1 - GAMMA * fragmentation**BETA)
    return np.where(np.isnan(value), 0, np.maximum(value, 0))  # nan: nothing matches, or there is no word


def _counts_of(pairs: Sequence[Pair], java: str) -> dict[Pair, list[float]]:
    lines = [" ||| ".join(("SCORE", *map(_plain, references), _plain(text))) for text, references in pairs]
    program = _program(java)
    answers = program.answers(lines)
    try:
        counts = [[float(number) for number in answer.split()] for answer in answers]
    except ValueError:
        counts = []
    if len(counts) != len(pairs) or any(len(numbers) != COUNTS for numbers in counts):
        _program.cache_clear()
        message = (program.end() or "".join(answers)).strip()[-300:]
        raise RSMoEError(f"METEOR's Java program failed on {len(pairs)} captions: {message or 'it ended'}")
    return dict(zip(pairs, counts))


class _Program:
    """METEOR's Java program. Starting it takes many times as long as scoring, so one serves all calls of a process."""

    def __init__(self, java: str):
        meteor = require("pycocoevalcap.meteor.meteor", "eval")

        jar = Path(meteor.__file__).with_name(meteor.METEOR_JAR)
        command = [java, "-Xmx2G", "-Dfile.encoding=UTF-8", "-jar", str(jar), "-", "-", "-stdio", "-l", "en", "-norm"]
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  # lives as long as the program
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            encoding="utf-8",
            errors="replace",
        )
        atexit.register(self.end)

    def answers(self, lines: Sequence[str]) -> list[str]:
        """The program's line for each of ours; fewer if it ends before."""
        assert self._process.stdin and self._process.stdout
        # Written beside reading: either pipe would fill up while nobody reads the other.
        writer = threading.Thread(target=self._write, args=(lines,), daemon=True)
        writer.start()
        answers = [self._process.stdout.readline() for _ in lines]
        writer.join()
        return [answer for answer in answers if answer]

    def _write(self, lines: Sequence[str]) -> None:
        with contextlib.suppress(BrokenPipeError):  # what did not come back shows in the answers
            self._process.stdin.write("".join(f"{line}\n" for line in lines))  # type: ignore[union-attr]
            self._process.stdin.flush()  # type: ignore[union-attr]

    def end(self) -> str:
        """End the program; what it wrote about errors."""
        atexit.unregister(self.end)
        self._process.kill()
        with contextlib.suppress(BrokenPipeError):
            self._process.communicate()
        self._errors.seek(0)
        return self._errors.read().decode(errors="replace")


_program = functools.cache(_Program)


def _plain(text: str) -> str:
    """A text without what separates texts in the program's protocol, as pycocoevalcap cleans predictions."""
    return text.replace("|||", "").replace("  ", " ")
