"""What can be said without a model that writes: one caption for all images, a training caption looked up for each
image (by similar images, or by the reranker), and answers guessed from the question.

A score means something only beside these. They learn from training records alone and are deterministic.
"""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence

import numpy as np

from ..data.records import CaptionRecord, QuestionRecord
from ..errors_rsmoe import RSMoEError
from .vqa import comparable_answer


Records = Sequence[QuestionRecord]
Votes = Counter[tuple[str, str]]  # of an answer as it is compared, and as it was published

NEIGHBORS = 15  # training images whose captions are compared
MAX_NGRAM = 4  # words, as in CIDEr


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


def nearest_captions(train: Sequence[CaptionRecord], train_looks: np.ndarray, looks: np.ndarray) -> list[str]:
    """For each image the caption, out of those of the training images that look most like it, on which these agree.

    Captions agree as far as they share n-grams, rare ones above all (tf-idf); those of more similar images count more.
    [our decision] Of the `NEIGHBORS` nearest: their consensus scores higher than the nearest image's own caption.

    Args:
        train: captioned images.
        train_looks: [training images, width], frozen features of each, in the order of `train`.
        looks: [images, width], of the images to caption.

    Raises:
        RSMoEError: when there is no training record.
    """
    if not train:
        raise RSMoEError("no training caption to take; the data folder needs a train split")
    mean, spread = train_looks.mean(0), train_looks.std(0) + 1e-6
    known, asked = (_unit((values - mean) / spread) for values in (train_looks, looks))
    grams = [[_ngrams(caption) for caption in record.captions] for record in train]
    frequency = Counter(gram for of_image in grams for gram in {gram for counts in of_image for gram in counts})
    vectors = [[_weighed(counts, frequency, len(train)) for counts in of_image] for of_image in grams]
    texts = []
    for row in asked @ known.T:
        nearest = np.argsort(-row, kind="stable")[:NEIGHBORS]
        offers = [
            (caption, vector, max(float(row[place]), 0.0) ** 2 / len(vectors[place]))
            for place in nearest
            for caption, vector in zip(train[place].captions, vectors[place], strict=True)
        ]
        together: defaultdict[Hashable, float] = defaultdict(float)
        for _, vector, share in offers:
            for gram, weight in vector.items():
                together[gram] += share * weight
        agreement = [sum(weight * together[gram] for gram, weight in vector.items()) for _, vector, _ in offers]
        texts.append(offers[int(np.argmax(agreement))][0])
    return texts


def retrieved_captions(captions: Sequence[str], caption_vectors: np.ndarray, image_vectors: np.ndarray) -> list[str]:
    """For each image the caption that the reranker finds to fit it best: one product of two matrices.

    Args:
        captions: different ones.
        caption_vectors: [captions, rank], of `RSMoEReranker.embed`.
        image_vectors: [images, rank], of the reranker's `image_projection`.

    Raises:
        RSMoEError: when there is no caption.
    """
    if not captions:
        raise RSMoEError("no training caption to take; the data folder needs a train split")
    return [captions[place] for place in (image_vectors @ caption_vectors.T).argmax(1)]


def share_in_train(references: Iterable[str], train: Iterable[str]) -> float:
    """The share of references, times 100, that stand among the training captions word for word (in lower case).

    Of these a look-up can be right without seeing anything new.

    Args:
        references: at least one; repeated ones count as often as they stand there.
        train: training captions.
    """
    known = set(map(_comparable, train))
    found = [_comparable(text) in known for text in references]
    return 100 * sum(found) / len(found)


def unseen_captions(records: Sequence[CaptionRecord], train: Iterable[str]) -> list[CaptionRecord]:
    """Those images of whose references none stands among the training captions word for word (in lower case).

    Args:
        records: captioned images.
        train: training captions.
    """
    known = set(map(_comparable, train))
    return [record for record in records if known.isdisjoint(map(_comparable, record.captions))]


def _comparable(caption: str) -> str:
    return " ".join(_words(caption))


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
    keys = (_type, lambda question: question.dataset, lambda question: None)
    levels = [(key, _votes(train, key)) for key in keys]
    return [
        next(_winner(votes[key(question)]) for key, votes in levels if key(question) in votes)
        for question in questions
    ]


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
    by_text = _votes(train, _text)
    words_of: dict[Hashable, dict[Hashable, frozenset[Hashable]]] = defaultdict(dict)
    for record in train:
        words_of[_type(record)][_text(record)] = _features(record)
    answers: dict[Hashable, str] = {}  # the same is asked about many images
    for question, guess in zip(questions, constant_answers(train, questions), strict=True):
        kind, text = _type(question), _text(question)
        if (kind, text) in answers:
            continue
        if text in by_text:
            answers[kind, text] = _winner(by_text[text])
        elif kind not in words_of:
            answers[kind, text] = guess
        else:
            nearest = _nearest(_features(question), words_of[kind])
            answers[kind, text] = _winner(sum((by_text[other] for other in nearest), Votes()))
    return [answers[_type(question), _text(question)] for question in questions]


def _unit(values: np.ndarray) -> np.ndarray:
    return values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)


def _ngrams(text: str) -> Counter[Hashable]:
    split = _words(text)
    return Counter(tuple(split[i : i + n]) for n in range(1, MAX_NGRAM + 1) for i in range(max(0, len(split) - n + 1)))


def _weighed(counts: Counter[Hashable], frequency: Counter[Hashable], images: int) -> dict[Hashable, float]:
    """The tf-idf weights of a caption's n-grams, of length 1 together."""
    weights = {gram: count * math.log((1 + images) / frequency[gram]) for gram, count in counts.items()}
    length = math.sqrt(sum(weight**2 for weight in weights.values())) or 1.0
    return {gram: weight / length for gram, weight in weights.items()}


def _votes(train: Records, key: Callable[[QuestionRecord], Hashable]) -> dict[Hashable, Votes]:
    """The answers of the training records that share a key."""
    if not train:
        raise RSMoEError("no training question to guess answers from; the data folder needs a train split")
    votes: dict[Hashable, Votes] = defaultdict(Counter)
    for record in train:
        compared = comparable_answer(record.answer, record.dataset, record.question_type, record.question)
        votes[key(record)][compared, record.answer] += 1
    return votes


def _nearest(features: frozenset[Hashable], texts: dict[Hashable, frozenset[Hashable]]) -> list[Hashable]:
    shared = {text: len(features & other) / len(features | other) for text, other in texts.items()}
    most = max(shared.values())
    return [text for text, share in shared.items() if share == most]


def _winner(counts: Votes) -> str:
    """The most frequent published text among those whose compared form is the most frequent; counts are by both."""
    compared: Counter[str] = Counter()
    for (name, _), count in counts.items():
        compared[name] += count
    best = _most_frequent(compared)
    return _most_frequent(Counter({answer: count for (name, answer), count in counts.items() if name == best}))


def _most_frequent(counts: Counter[str]) -> str:
    return min(counts, key=lambda name: (-counts[name], name))


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _features(record: QuestionRecord) -> frozenset[Hashable]:
    words = _words(record.question)
    return frozenset(words) | frozenset(zip(words, words[1:]))


def _text(record: QuestionRecord) -> Hashable:
    return record.dataset, " ".join(_words(record.question))


def _type(record: QuestionRecord) -> Hashable:
    return record.dataset, record.question_type
