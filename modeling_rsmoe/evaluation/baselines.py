"""What can be said without an image: one caption for all of them, and answers guessed from the question.

A score means something only beside these. They are made as strong as little code makes them, from training records
alone, and are deterministic. Knows nothing about models.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence

from ..data.records import CaptionRecord, QuestionRecord
from ..errors_rsmoe import RSMoEError
from .vqa import comparable_answer


Records = Sequence[QuestionRecord]


def constant_caption(train: Sequence[CaptionRecord]) -> str:
    """The most frequent training caption, compared by its lower-case words, in its most frequent spelling.

    Give the training records of the dataset that is scored, or those of all datasets for one without a train split.
    [our decision] The caption of the highest mean CIDEr-D among the 50 most frequent or most central ones, on a sample
    of training images, was no stronger on val (RSICD 42 or 43 against 48, UCM-Captions 39.3 against 38.9,
    NWPU-Captions 14 or 12 against 14), and takes ten seconds.

    Args:
        train: captioned images.

    Raises:
        RSMoEError: when there is no training record.
    """
    if not train:
        raise RSMoEError("no training caption to take as the constant one; the data folder needs a train split")
    return _winner(Counter((" ".join(_words(text)), text) for record in train for text in record.captions))


def constant_answers(train: Records, questions: Records) -> list[str]:
    """The most frequent training answer to that type of question in that dataset.

    Answers are counted as they are scored (`comparable_answer`): of RSVQA-LR's counts the most frequent *range* wins,
    and of that range the most frequent answer is given. A type that the training records lack gets the dataset's
    answer, a dataset that they lack the answer of them all.

    Args:
        train: questions with their answers.
        questions: to answer.

    Raises:
        RSMoEError: when there is no training record.
    """
    levels = [_Votes(train, key) for key in (_type, _dataset, _everything)]
    return [_first(votes.answer(question) for votes in levels) for question in questions]


def question_only_answers(train: Records, questions: Records) -> list[str]:
    """The most frequent training answer to that very question text; where there is none, to the nearest ones.

    Nearest are the questions of the same dataset and type that share most words and pairs of neighboring words (by
    Jaccard's index); all of the nearest vote. Without such questions it is the answer of `constant_answers`. Words are
    compared in lower case. [our decision] Of what was tried on val, this and a weighted vote of ten neighbors were the
    strongest; naive Bayes over words was weaker on RSVQA, where "more" and "less" must not be confused.

    Args:
        train: questions with their answers.
        questions: to answer.

    Raises:
        RSMoEError: when there is no training record.
    """
    same_text = _Votes(train, _text)
    nearest = _Nearest(train, same_text)
    guesses = constant_answers(train, questions)
    return [
        _first((same_text.answer(question), nearest.answer(question), guess))
        for question, guess in zip(questions, guesses, strict=True)
    ]


class _Votes:
    """The most frequent answer of the training records that share a key with a question."""

    def __init__(self, train: Records, key: Callable[[QuestionRecord], Hashable]) -> None:
        if not train:
            raise RSMoEError("no training question to guess answers from; the data folder needs a train split")
        self._key = key
        self._counts: dict[Hashable, Counter[tuple[str, str]]] = defaultdict(Counter)
        for record in train:
            compared = comparable_answer(record.answer, record.dataset, record.question_type)
            self._counts[key(record)][compared, record.answer] += 1

    def answer(self, question: QuestionRecord) -> str | None:
        key = self._key(question)
        return _winner(self._counts[key]) if key in self._counts else None

    def counts(self, key: Hashable) -> Counter[tuple[str, str]]:
        return self._counts[key]


class _Nearest:
    """The most frequent answer to the training questions whose words are nearest to a question's."""

    def __init__(self, train: Records, by_text: _Votes) -> None:
        self._votes = by_text
        self._texts: dict[Hashable, dict[Hashable, frozenset[Hashable]]] = defaultdict(dict)
        for record in train:
            self._texts[_type(record)][_text(record)] = _features(record)
        self._found: dict[Hashable, str] = {}

    def answer(self, question: QuestionRecord) -> str | None:
        texts = self._texts.get(_type(question))
        if texts is None:
            return None
        key = (_type(question), _text(question))
        if key not in self._found:
            features = _features(question)
            shared = {text: len(features & other) / len(features | other) for text, other in texts.items()}
            most = max(shared.values())
            votes: Counter[tuple[str, str]] = Counter()
            for text, share in shared.items():
                if share == most:
                    votes.update(self._votes.counts(text))
            self._found[key] = _winner(votes)
        return self._found[key]


def _winner(counts: Counter[tuple[str, str]]) -> str:
    """The most frequent published text among those whose compared form is the most frequent; counts are by both."""
    compared: Counter[str] = Counter()
    for (name, _), count in counts.items():
        compared[name] += count
    best = _most_frequent(compared)
    return _most_frequent(Counter({answer: count for (name, answer), count in counts.items() if name == best}))


def _most_frequent(counts: Counter[str]) -> str:
    return min(counts, key=lambda name: (-counts[name], name))


def _first(answers: Iterable[str | None]) -> str:
    return next(answer for answer in answers if answer is not None)


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _features(record: QuestionRecord) -> frozenset[Hashable]:
    words = _words(record.question)
    return frozenset(words) | frozenset(zip(words, words[1:]))


def _text(record: QuestionRecord) -> Hashable:
    return record.dataset, " ".join(_words(record.question))


def _type(record: QuestionRecord) -> Hashable:
    return record.dataset, record.question_type


def _dataset(record: QuestionRecord) -> Hashable:
    return record.dataset


def _everything(record: QuestionRecord) -> Hashable:
    return None
