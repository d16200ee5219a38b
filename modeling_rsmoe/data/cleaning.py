"""Cleans one published caption into the text that a model learns to write. Knows no tokenizer and no image.

[our decision] Targets are cleaned, references are not: scores are always computed against the raw published text. The
cleaning does not cost score: the PTB tokenizer of the caption metrics lower-cases and drops punctuation, and a word is
respelled only where the published spelling is a slip of a word that the same data spells right far more often.
"""

import re

from .lexicon import LEXICON
from .sentences import split_sentences


SPELLING = LEXICON["spelling"]  # slip -> what was meant
_SPELLING = re.compile(r"\b(" + "|".join(sorted(SPELLING, key=len, reverse=True)) + r")\b", re.IGNORECASE)

_CHARACTERS = str.maketrans({"_": "-", "`": "'", "\u2019": "'", "[": None, "]": None})


def clean_caption(caption: str) -> str:
    """A caption as a model learns it: single spaces, none before punctuation, known slips respelled; each sentence
    has a capital and one final period.

    >>> clean_caption("many  trees ,and a raod . .")
    'Many trees, and a road.'
    """
    return " ".join(filter(None, (_clean_sentence(sentence) for sentence in split_sentences(caption))))


def _clean_sentence(sentence: str) -> str:
    text = sentence.translate(_CHARACTERS)
    text = _SPELLING.sub(lambda match: SPELLING[match.group(0).lower()], re.sub(r"\(\d*\)?|\)", " ", text))
    text = re.sub(r"\s+", " ", text).strip()
    text = re.sub(r"\s+([.,;:!?])", r"\1", text)
    text = re.sub(r"([,;])(?=[^\s\d])", r"\1 ", text)
    text = re.sub(r"[\s.,;:]+$", "", text)
    if not text:
        return ""
    if text[-1] not in "!?":
        text += "."
    return text[0].upper() + text[1:]


def words(sentence: str) -> list[str]:
    """The lower-case words of a sentence, known slips respelled, hyphenated words split, punctuation dropped.

    >>> words("Some semi-surrounded tress.")
    ['some', 'semi', 'surrounded', 'trees']
    """
    published = re.findall(r"[a-z]+", sentence.lower())
    return [word for spelling in published for word in SPELLING.get(spelling, spelling).split()]
