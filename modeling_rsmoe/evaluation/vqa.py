"""Accuracy of short answers, overall and for each question type, with bootstrap intervals.

Counts and areas of RSVQA are compared in ranges where its authors do so, sentences by what they say. Knows nothing
about models or data folders.
"""

import re
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from ..data.records import QuestionRecord
from ..errors_rsmoe import RSMoEError
from .intervals import interval, mean_interval, means
from .scores import Score, Scored
from .sentence_answers import read_answer
from .spelling import normalize_answer


# Dataset and question type that are compared in ranges: counts of the low-resolution and areas of the high-resolution
# set. RSVQA's counts in the high-resolution set, and all of RSIVQA, are compared exactly. Source: the authors' code,
# github.com/syvlo/RSVQA, VQA_model/VocabEncoder.py (Lobry et al., IEEE TGRS 2020).
IN_RANGES = {("RSVQA-LR", "count"), ("RSVQA-HR", "area")}
# Datasets whose answers are sentences, compared by what they say (`sentence_answers`) [our decision].
SENTENCES = {"RSIEval", "VRSBench"}
RANGES = ("0", "1-10", "11-100", "101-1000", ">1000")

# RSVQA's code names its ranges by the bound below, "between 10 and 100" for 11 to 100: both names are understood.
_SPELLED_RANGES = {"more than 1000": ">1000"} | {
    spelled: f"{low}-{high}"
    for low, high in ((1, 10), (11, 100), (101, 1000))
    for start in (low, low - 1)
    for spelled in (f"between {start} and {high}", f"{start} to {high}", f"{start} {high}")
}


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
def comparable_answer(answer: str, dataset: str, question_type: str, question: str = "") -> str:
    """What "accuracy" compares: the answer's range where the dataset's authors use ranges, what a sentence says where
    the dataset's answers are sentences, else the answer's one spelling.

    Args:
        answer: as a person or a model wrote it.
        dataset: that the question is of.
        question_type: for example "count".
        question: its text, which says how a sentence is read.
    """
    if dataset in SENTENCES:
        return read_answer(answer, question)
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
        ranges and without reading sentences. Types of one name in several datasets are one type. Each question has
        ``accuracy`` and ``exact``, 0 or 100.

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
    read = sorted({question.dataset for question in questions} & SENTENCES)
    notes |= {f"{dataset} answers": "right where they say the same; exact: where they are equal" for dataset in read}
    return Scored(scores, each, notes=notes)


def _is_right(question: QuestionRecord, answer: str) -> bool:
    expected, answered = (
        comparable_answer(text, question.dataset, question.question_type, question.question)
        for text in (question.answer, answer)
    )
    return bool(answered) and answered == expected


def _is_exact(question: QuestionRecord, answer: str) -> bool:
    answered = normalize_answer(answer)
    return bool(answered) and answered == normalize_answer(question.answer)


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
