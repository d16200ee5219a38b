"""One spelling for answers that say the same in other letters: case, punctuation, number words, units of area."""

import re
import unicodedata


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


def _plain_number(word: str) -> str:
    """A number without leading zeros and zero decimals; another word as it is."""
    number = re.fullmatch(r"(-?)0*(\d+?)(?:\.(?=\d)(\d*?)0*)?", word)
    return number.expand(r"\1\2") + (f".{number[3]}" if number[3] else "") if number else word
