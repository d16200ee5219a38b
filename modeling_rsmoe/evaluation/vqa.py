"""Accuracy of short answers, overall and for each question type, with bootstrap intervals.

Counts and areas of RSVQA are compared in ranges where its authors do so. Knows nothing about models or data folders.
"""

import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from ..data.records import QuestionRecord
from ..errors_rsmoe import RSMoEError
from .intervals import interval, mean_interval, means
from .scores import Score, Scored


# Dataset and question type that are compared in ranges: counts of the low-resolution and areas of the high-resolution
# set. RSVQA's counts in the high-resolution set, and all of RSIVQA, are compared exactly. Source: the authors' code,
# github.com/syvlo/RSVQA, VQA_model/VocabEncoder.py (Lobry et al., IEEE TGRS 2020).
IN_RANGES = {("RSVQA-LR", "count"), ("RSVQA-HR", "area")}
RANGES = ("0", "1-10", "11-100", "101-1000", ">1000")

_UNITS = [
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
]  # fmt: skip
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_NUMBERS = {word: number for number, word in enumerate(_UNITS)} | {"none": 0}
_NUMBERS |= {word: 10 * number for number, word in enumerate(_TENS, 2)}
_NUMBERS |= {f"{ten} {unit}": _NUMBERS[ten] + _NUMBERS[unit] for ten in _TENS for unit in _UNITS[1:10]}
_NUMBER_WORDS = re.compile(r"\b(" + "|".join(sorted(_NUMBERS, key=len, reverse=True)) + r")\b")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_SQUARE_METERS = re.compile(r"(?<=\d) ?(?:m2|m\^2|sqm|sq\.? ?m|square met(?:er|re)s?)(?![a-z0-9])")
_WORD = re.compile(r"(?<!\w)-?\d+(?:\.\d+)?|\w+")
_SIGNS = str.maketrans({"'": "", "\u2019": "", ">": " more than "})
_ARTICLES = {"a", "an", "the"}
_PHRASES = {"rural area": "rural", "rural areas": "rural", "urban area": "urban", "urban areas": "urban"}
# RSVQA's code names its ranges by the bound below, "between 10 and 100" for 11 to 100: both names are understood.
_SPELLED_RANGES = {"more than 1000": ">1000"} | {
    spelled: f"{low}-{high}"
    for low, high in ((1, 10), (11, 100), (101, 1000))
    for start in (low, low - 1)
    for spelled in (f"between {start} and {high}", f"{start} to {high}", f"{start} {high}")
}


def normalize_answer(answer: str) -> str:
    """One spelling for answers that say the same.

    The rule, in this order: compatibility forms are unified (``m²`` is ``m2``), lower case, ">" is "more than"; commas
    inside numbers go; ``m2`` and its spellings after a number go, as the question says whether an area is asked for;
    hyphens and other punctuation become spaces, apostrophes go; number words up to ninety-nine, and "none", become
    digits; leading zeros and zero decimals of numbers go; articles go unless nothing else is there; "rural area" and
    "urban area" lose their "area". Nothing is picked out of a sentence: "There are 4." is not "4", "Yes, it is." is
    not "yes".

    Args:
        answer: as a person or a model wrote it.

    Example:

    ```python
    >>> [normalize_answer(text) for text in ("Yes.", "thirty-four", "10,632 m2", "A rural area")]
    ['yes', '34', '10632', 'rural']
    ```
    """
    text = unicodedata.normalize("NFKC", answer).lower().translate(_SIGNS)
    text = _SQUARE_METERS.sub("", _THOUSANDS.sub("", text))
    text = " ".join(_WORD.findall(text.replace("_", " ")))
    text = _NUMBER_WORDS.sub(lambda match: str(_NUMBERS[match.group()]), text)
    words = [_plain_number(word) for word in text.split()]
    text = " ".join(word for word in words if word not in _ARTICLES) or " ".join(words)
    return _PHRASES.get(text, text)


def answer_range(answer: str) -> str | None:
    """The one of `RANGES` that a count or an area in square meters falls in; None for what is no such number.

    The range itself may be the answer, as a model that learned ranges gives it: "between 11 and 100", "11-100",
    "more than 1000".

    Args:
        answer: as a person or a model wrote it.

    Example:

    ```python
    >>> [answer_range(text) for text in ("0m2", "ten", "between 11 and 100", "12345", "many")]
    ['0', '1-10', '11-100', '>1000', None]
    ```
    """
    number = normalize_answer(answer)
    if not re.fullmatch(r"\d+(\.\d+)?", number):
        return _SPELLED_RANGES.get(number)
    value = float(number)
    if value == 0:
        return RANGES[0]
    return next((name for name, high in zip(RANGES[1:4], (10, 100, 1000)) if value <= high), RANGES[4])


@lru_cache(maxsize=2**16)  # a few answers are given to most questions
def comparable_answer(answer: str, dataset: str, question_type: str) -> str:
    """What "accuracy" compares: the answer's range where the dataset's authors use ranges, else its one spelling.

    Args:
        answer: as a person or a model wrote it.
        dataset: that the question is of.
        question_type: for example "count".
    """
    spelled = normalize_answer(answer)
    if (dataset, question_type) in IN_RANGES:
        return answer_range(answer) or spelled
    return spelled


def score_answers(
    questions: Sequence[QuestionRecord], answers: Sequence[str], samples: int = 1000, seed: int = 0
) -> Scored:
    """Compare one answer for each question with the published one.

    Args:
        questions: with their datasets and types, which say how to compare.
        answers: of the same questions, in the same order. An empty one is wrong.
        samples: of the bootstrap over questions.
        seed: of the bootstrap.

    Returns:
        Percentages: ``accuracy`` over all questions ("overall accuracy" of the RSVQA paper), ``average`` over the
        question types (its "average accuracy"), ``accuracy: TYPE`` for each type, and ``exact``: accuracy without
        ranges. Types of one name in several datasets are one type. Each question has ``accuracy`` and ``exact``, 0 or
        100.

    Raises:
        RSMoEError: when there is no question, or not one answer for each.
    """
    if not questions:
        raise RSMoEError("no question to score; give at least one question and its answer")
    if len(questions) != len(answers):
        raise RSMoEError(f"{len(answers)} answers for {len(questions)} questions; give one answer for each question")
    right = np.array([_is_right(question, answer) for question, answer in zip(questions, answers)], dtype=float)
    exact = np.array([_is_exact(question, answer) for question, answer in zip(questions, answers)], dtype=float)
    types = np.array([question.question_type for question in questions])
    scores = {
        "accuracy": mean_interval(right.tolist(), samples, seed),
        "average": _average_over_types(right, types, samples, seed),
    }
    for name in sorted(set(types.tolist())):
        scores[f"accuracy: {name}"] = mean_interval(right[types == name].tolist(), samples, seed)
    scores["exact"] = mean_interval(exact.tolist(), samples, seed)
    each = [
        {"accuracy": 100 * float(is_right), "exact": 100 * float(is_exact)} for is_right, is_exact in zip(right, exact)
    ]
    ranged = sorted({(question.dataset, question.question_type) for question in questions} & IN_RANGES)
    notes = {"Answers": "compared in one spelling (lower case, digits, no articles, punctuation or units of area)"}
    notes |= {f"{dataset} {name}": f"right within a range of {', '.join(RANGES)}" for dataset, name in ranged}
    return Scored(scores, each, notes=notes)


def _is_right(question: QuestionRecord, answer: str) -> bool:
    expected, answered = (
        comparable_answer(text, question.dataset, question.question_type) for text in (question.answer, answer)
    )
    return bool(answered) and answered == expected


def _is_exact(question: QuestionRecord, answer: str) -> bool:
    answered = normalize_answer(answer)
    return bool(answered) and answered == normalize_answer(question.answer)


def _plain_number(word: str) -> str:
    """A number without leading zeros and zero decimals; another word as it is."""
    number = re.fullmatch(r"(-?)0*(\d+?)(?:\.(?=\d)(\d*?)0*)?", word)
    return number.expand(r"\1\2") + (f".{number[3]}" if number[3] else "") if number else word


def _average_over_types(right: np.ndarray, types: np.ndarray, samples: int, seed: int) -> Score:
    """Mean of the types' accuracies, with all questions resampled; a type that a resample misses is left out of it."""
    names = np.unique(types)
    is_type = types[:, None] == names  # [questions, types]
    # Sorted, because items are drawn by place.
    order = np.lexsort((right, types))
    drawn = means(np.hstack([is_type * right[:, None], is_type])[order], samples, seed)
    num_right, count = np.hsplit(drawn, 2)  # [samples, types] each
    accuracy = np.divide(num_right, count, out=np.full(num_right.shape, np.nan), where=count > 0)
    return interval(
        100 * float(np.mean([right[types == name].mean() for name in names])), 100 * np.nanmean(accuracy, 1)
    )
