"""What an image's references say in several sentences, by aspect; and the same with faults, as experts make them.

[our decision] A reference of several sentences is a paragraph as it stands. References of one sentence each make one:
one sentence of each aspect, theme first, and beside it those that name something new.
"""

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .aspects import ASPECTS, aspect_texts, split_aspects
from .cleaning import clean_caption, words
from .nouns import mentions
from .records import CaptionRecord
from .sentences import split_sentences


MISSING_SHARE = 0.15  # of a paragraph's sentences are left out of the expert texts
FOREIGN_SHARE = 0.15  # are replaced by one of another image
ALTERED_SHARE = 0.1  # have another number or color
ADDED_SHARE = 0.2  # of the expert texts have a sentence of another image beside their own

_NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_COLORS = ("white", "red", "green", "blue", "gray", "black", "brown", "yellow")
_NUMBER_OR_COLOR = re.compile(rf"\b({'|'.join([*_NUMBERS, *_COLORS])})\b", re.IGNORECASE)


@dataclass(frozen=True)
class Paragraph:
    """A text of several sentences.

    Attributes:
        text: as a model learns it, cleaned.
        sentences: the same by aspect, cleaned; an aspect may have none.
    """

    text: str
    sentences: Mapping[str, Sequence[str]]


def is_paragraph(caption: str) -> bool:
    """Whether a caption has several sentences."""
    return len(split_sentences(caption)) > 1


def paragraph_of(record: CaptionRecord, rng: random.Random) -> Paragraph:
    """One of the record's paragraphs; of references of one sentence each, a paragraph made of them.

    Args:
        record: an image and its references.
        rng: draws the reference, or the order in which sentences are taken.
    """
    whole = [caption for caption in record.captions if is_paragraph(caption)]
    if whole:
        caption = rng.choice(whole)
        own = record.aspects if record.aspects is not None else split_aspects([caption])
        sentences: dict[str, list[str]] = {name: [] for name in ASPECTS}
        sentences |= {name: [clean_caption(text) for text in texts] for name, texts in own.items()}
        return Paragraph(clean_caption(caption), sentences)
    chosen = _different_sentences(record, rng)
    return Paragraph(" ".join(text for texts in chosen.values() for text in texts), chosen)


def with_faults(
    sentences: Mapping[str, Sequence[str]], others: Sequence[CaptionRecord], rng: random.Random
) -> dict[str, str]:
    """Expert texts of a paragraph that are partly wrong, as an expert's are: what reads them must look at the image.

    Args:
        sentences: of the paragraph, by aspect.
        others: images whose sentences are wrong here, such as similar ones; none for no foreign sentences.
        rng: of every fault.

    Returns:
        One text for each of ``ASPECTS``, possibly empty.
    """
    texts = {}
    for aspect in ASPECTS:
        foreign = aspect_texts(rng.choice(others))[aspect] if others else []
        stated = [_faulty(sentence, foreign, rng) for sentence in sentences[aspect]]
        if foreign and rng.random() < ADDED_SHARE:
            stated.insert(rng.randint(0, len(stated)), _one_sentence(foreign, rng))
        texts[aspect] = " ".join(filter(None, stated))
    return texts


def _different_sentences(record: CaptionRecord, rng: random.Random) -> dict[str, list[str]]:
    named: set[str] = set()
    chosen: dict[str, list[str]] = {}
    for aspect, sentences in split_aspects(record.captions).items():
        chosen[aspect] = []
        for sentence in rng.sample(sentences, len(sentences)):
            nouns = {mention.noun.singular for mention in mentions(words(sentence))}
            if not chosen[aspect] or nouns - named:
                chosen[aspect].append(clean_caption(sentence))
                named |= nouns
    return chosen


def _faulty(sentence: str, foreign: Sequence[str], rng: random.Random) -> str:
    draw = rng.random()
    if draw < MISSING_SHARE:
        return ""
    if draw < MISSING_SHARE + FOREIGN_SHARE:
        return _one_sentence(foreign, rng) if foreign else sentence
    return _altered(sentence, rng) if draw < MISSING_SHARE + FOREIGN_SHARE + ALTERED_SHARE else sentence


def _one_sentence(texts: Sequence[str], rng: random.Random) -> str:
    return clean_caption(rng.choice(split_sentences(rng.choice(texts))))


def _altered(sentence: str, rng: random.Random) -> str:
    """With another number or color in place of its first one."""

    def other(match: re.Match[str]) -> str:
        word = match[0].lower()
        new = rng.choice([one for one in (_NUMBERS if word in _NUMBERS else _COLORS) if one != word])
        return new.capitalize() if match[0][0].isupper() else new

    return _NUMBER_OR_COLOR.sub(other, sentence, count=1)
