"""What a sentence answers: "There are seven planes in the image." says 7, "Yes, it is." says yes.

[our decision] RSIEval's and VRSBench's answers are free text, so equality is far stricter than a person is. Both the
published answer and the prediction are read here in the same way, by the form of the question; what cannot be read
stays as it is and equals only itself. Nothing is guessed: two numbers are none, "about 20" is not 20.
"""

import re
from functools import lru_cache

from .spelling import normalize_answer


# The patterns are of answers in one spelling: lower case, no articles, "isnt", number words as digits, "none" as 0.
_AFFIRMED = (
    r"^(?:there (?:is|are)|theres|it (?:is|does|has)|they (?:are|do|have)"
    r"|(?:(?:this|image|picture|photo) )+(?:is|does|has|contains?|shows?|includes?))\b"
)
_NEGATED = re.compile(rf"^(?:no|not|0|neither)\b|{_AFFIRMED} (?:no|not|0|neither)\b")
_NEGATED_LATER = re.compile(
    r"\b(?:(?:is|are|was|were|do|does|has|have|can|could) not|cannot|(?:is|are|do|does|has|have)nt)\b"
)
_AFFIRMATIVE = re.compile(_AFFIRMED)
_NO_VERDICT = re.compile(
    r"\b(?:unclear|unknown|unsure|maybe|perhaps|possibly|impossible|blurry|difficult|hard to"
    r"|(?:can ?not|cant) (?:be )?(?:determined?|tell|told|say|said|sure)|not (?:possible|clear|sure|certain|enough))\b"
)
_YES_NO_QUESTION = re.compile(
    r"^(?:in (?:this|the) image,? )?(?:is|are|was|were|do|does|did|has|have|can|could|all)\b(?!.*\bor\b)",
    re.IGNORECASE,
)
_COUNT_QUESTION = re.compile(r"\b(?:how many|number of|how much)\b", re.IGNORECASE)

_MULTIPLES = {"dozen": 12, "hundred": 100, "thousand": 1000}
_BOUNDS = {
    r"(?:no|not) more than|at most|up to|maximum of": "at most",
    r"(?:no|not) (?:fewer|less) than|at least|minimum of": "at least",
    r"more than|greater than|over|above": "more than",
    r"(?:fewer|less) than|under|below": "fewer than",
    r"about|around|approximately|roughly|nearly|almost|some": "about",
}
_MANY = re.compile(r"\b(?:many|numerous|lots?|plenty)\b")
_ONE = re.compile(
    r"^\W*(?:there(?:'s| is) )?(?:only )?an? (?!few|lot|couple|number|group|dozen|hundred|thousand|large n)"
)

_SAME = {
    "upper": "top",
    "lower": "bottom",
    "centre": "center",
    "middle": "center",
    "beneath": "below",
    "under": "below",
}
_SAME |= {"underneath": "below", "grey": "gray", "colour": "color", "colored": "color", "airplane": "plane"}
_PLACING = {"in", "on", "at", "of", "to", "from", "with", "towards", "located", "situated", "placed", "positioned"}
_PLACING |= {"visible", "seen", "it", "its", "they", "there", "this", "that"}
# Words that an answer may have or not, in the order in which they go; its last word stays.
_OPTIONAL = ("image", "picture", "photo", "scene", "area", "part", "side", "corner", "portion", "direction")
_OPTIONAL += ("orientation", "shape", "many", "some", "several", "1", "color")
_DIRECTIONS = {"north", "south", "east", "west", "left", "right", "top", "bottom", "up", "down", "center", "and"}
_SAYS = re.compile(
    r"^(.+?) (?:is|are|looks?|appears?(?: to be)?|depicts?|shows?|runs?|faces?|belongs? to|consists? of) (.+)$"
)


@lru_cache(maxsize=2**16)
def read_answer(answer: str, question: str) -> str:
    """What an answer says, in a form in which answers that say the same are equal.

    1. Where "how many" is asked, a number: the only one in the sentence, or its bound ("more than 100"). "A plane" is
       1, "no planes" 0, "a dozen" 12, "lots of" many. "One of the planes" and two numbers are none.
    2. Else yes or no, where it is the first word ("No. The road runs from north to south." is no).
    3. Where a yes or a no is asked for, a sentence without one: "There is no building." is no, "There is a ship." is
       yes. "The image is too blurry to determine." is neither.
    4. Else the named thing: what the sentence says of its subject ("The roof is white." is "white"), or the subject
       where the rest stands in the question. Places and kinds have one spelling ("The upper left part" is "left top").

    Args:
        answer: published or predicted.
        question: that it answers.

    Returns:
        What was read, else the answer in one spelling (`normalize_answer`).

    Example:

    ```python
    >>> read_answer("There are seven planes in the image.", "How many planes are there in this image?")
    '7'
    >>> read_answer("The roof is gray.", "What color is the roof?")
    'gray'
    ```
    """
    text = normalize_answer(answer)
    if _COUNT_QUESTION.search(question):
        return _count(text, answer.lower())
    first = re.match(r"\W*(?:(yes)\b|(no)\b(?=\s*(?:[.,;:!-]|$)|\s+(?:there|it|they|the|this)\b))", answer.lower())
    if first:
        return first[1] or first[2]
    if _YES_NO_QUESTION.match(question.strip()):
        return _verdict(text)
    return _thing(normalize_answer(re.sub(r",\s*(?:and\s+)?(?!\d)", " and ", answer)), normalize_answer(question))


def _verdict(text: str) -> str:
    if _NO_VERDICT.search(text):
        return text
    if _NEGATED.search(text):
        return "no"
    if _AFFIRMATIVE.match(text):  # also "There is a road that is not straight."
        return "yes"
    return "no" if _NEGATED_LATER.search(text) else text


def _count(text: str, published: str) -> str:
    """Args: the answer in one spelling, and in lower case with its articles, which the spelling drops."""
    text = text.replace("half dozen", "6")
    for word, times in _MULTIPLES.items():
        text = re.sub(rf"\b(?:(\d+) )?{word}\b", lambda match, by=times: str(int(match[1] or 1) * by), text)
    text = re.sub(r"\b(\d+)00 (?:and )?(\d\d?)\b", lambda match: str(int(match[1]) * 100 + int(match[2])), text)
    text = re.sub(r"\b1 of \b", "", text)  # "one of the planes" counts nothing
    numbers = re.findall(r"\b\d+(?:\.\d+)?\b(?! (?:st|nd|rd|th)\b)", text)
    if len(numbers) == 1:
        bounds = (bound for words, bound in _BOUNDS.items() if re.search(rf"\b(?:{words}) {numbers[0]}\b", text))
        bound = next(bounds, "")
        return f"{bound} {numbers[0]}".strip()
    if numbers or _NO_VERDICT.search(text):
        return text
    if _NEGATED.search(text) or _NEGATED_LATER.search(text):
        return "0"
    return "many" if _MANY.search(text) else "1" if _ONE.match(published) else text


def _thing(text: str, question: str) -> str:
    """Args: answer and question in one spelling."""
    said, asked = _SAYS.match(text), set(_plain(question))
    words = _plain(said[2] if said else text)
    if said and asked.issuperset(words) and not asked.issuperset(subject := _plain(said[1])):
        words = subject  # "What is in the corner?" "Trees are in the corner."
    words = words or text.split()
    for word in _OPTIONAL:
        if word in words and len(words) > 1:
            words.remove(word)
    if set(words) <= _DIRECTIONS:  # "south-north" is "north-south"
        return " ".join(sorted(set(words) - {"and"}))
    return " and ".join(sorted(re.split(r" and ", " ".join(words))))


def _plain(text: str) -> list[str]:
    return [_singular(_SAME.get(word, word)) for word in text.split() if word not in _PLACING]


def _singular(word: str) -> str:
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    if re.search(r"(?:ss|sh|ch|x|^bus)es$", word):
        return word[:-2]
    return word[:-1] if re.search(r"[^sui]s$", word) and len(word) > 3 else word
