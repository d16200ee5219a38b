"""Splits a caption into its sentences, with syntok: it knows abbreviations, decimal numbers and a missing space."""

import re
from functools import lru_cache

import syntok.segmenter


# syntok goes by capitals. A caption without any is cut after a word of three letters or more and a full stop.
_LOWER_CASE_END = re.compile(r"(?<=[a-z]{3}[.!?])\s+|(?<=[a-z]{3} [.!?])\s+|(?<=[a-z]{3}[.!?])(?=[a-z]{2})")
_WORD = re.compile(r"[^\W_]")


@lru_cache(maxsize=65536)
def split_sentences(caption: str) -> tuple[str, ...]:
    """The sentences of a caption as they stand there, without those that have no letter or digit.

    Args:
        caption: one sentence or a paragraph of English.

    >>> split_sentences("This is a port.There are 2.5 m wide piers, approx. 10 ships. They are white.")
    ('This is a port.', 'There are 2.5 m wide piers, approx. 10 ships.', 'They are white.')
    """
    if caption.lower() == caption:
        sentences = _LOWER_CASE_END.split(caption.strip())
    else:
        sentences = [
            "".join(token.spacing + token.value for token in sentence)
            for paragraph in syntok.segmenter.process(caption)
            for sentence in paragraph
        ]
    return tuple(text for sentence in sentences if _WORD.search(text := sentence.strip()))
