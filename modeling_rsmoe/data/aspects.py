"""Split an image's reference captions into what each expert learns: theme, object and relation sentences.

[our decision] The paper's data files show that captions were split by aspect, not how. The rule here:

1. a sentence that says where something lies speaks of a **relation**: it has a spatial word and two nouns, or names a
   part of the image ("in the upper left corner");
2. else one that says what the image shows as a whole speaks of the **theme**: it names the kind of image, an area
   ("forest", "residential area") anywhere, or a structure ("bridge", "runway") that is its first noun. Counted ones
   ("four tennis courts") are things;
3. every other sentence speaks of **objects**.

Most sentences qualify for more than one aspect ("many planes are parked near the terminal in an airport"), so the
three experts of one image would often have nothing to learn from it. Hence a second step, for the sentences of one
image together: an aspect that is still empty takes the sentence that qualifies best, from an aspect that keeps another
one. Every sentence belongs to exactly one aspect of its image. docs/explanation/aspects.md shows what the rule does to
the data.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import lru_cache

from .cleaning import words
from .lexicon import PLACING, PRONOUNS, Mention, Noun, spatial_spans
from .nouns import mentions
from .records import CaptionRecord
from .sentences import split_sentences


ASPECTS = ("theme", "object", "relation")

_MAX_NAMED = 3  # things that a router prompt names, so that it stays a short line
_IMAGE_WORDS = ("image", "picture", "photo", "photograph")
_IMAGE = f"(?:{'|'.join(_IMAGE_WORDS)})"
# The patterns are of a sentence's `words`: lower case, hyphens are spaces.
# "aerial image", "high resolution satellite image", "aerial view": what kind of image this is.
_KIND_OF_IMAGE = re.compile(
    r"\b(?:aerial|satellite|sensing|resolution|panchromatic|gr[ae]yscale|colou?r)(?: [a-z]+)? "
    rf"(?:{_IMAGE}|view)\b"
)
# "in the upper left corner", "the right side of the image", "on the left": which part of the image.
_DIRECTION = "(?:upper|lower|top|bottom|left|right|middle|center|centre|central)(?:most)?"
_PART = "(?:part|side|corner|half|edge|portion|section|quadrant|region|end)s?"
_PLACE_IN_IMAGE = re.compile(
    rf"\b(?:{_DIRECTION} (?:(?:{_DIRECTION}|and) )*{_PART}"
    rf"|(?:{_DIRECTION}|edge|side|corner) of the (?:{_IMAGE}|frame|scene)"
    rf"|(?:in|on|at|to|towards?|near) the {_DIRECTION}(?= there\b|$))\b"
)
# "In the parking lot, there are ...": which scene it is was said before, this is where the things are.
_GROUND = re.compile(r"(?:in|on|inside|within) (?:the|this|these) [^,]+,", re.IGNORECASE)
_DIGITS = re.compile(r"\d[\d.,]*")
_NUMBERS = {"two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "both"}


def aspect_of(sentence: str) -> str:
    """The aspect of one sentence by itself (rules 1 to 3 of the module).

    >>> aspect_of("Many cars are parked near a building.")
    'relation'
    """
    evidence = _evidence(sentence)
    if evidence["relation"] >= 2:
        return "relation"
    return "theme" if evidence["theme"] >= 2 else "object"


def split_aspects(captions: Iterable[str]) -> dict[str, list[str]]:
    """All sentences of one image by aspect: each distinct sentence once, in order of first appearance.

    Args:
        captions: the reference captions of one image, of one or several sentences each. Sentences that differ only in
            case, spaces or punctuation count as the same.

    Returns:
        A list for each of ``ASPECTS``, possibly empty.
    """
    return {aspect: list(sentences) for aspect, sentences in _split(tuple(captions)).items()}


def aspect_texts(record: CaptionRecord) -> dict[str, list[str]]:
    """What an expert may learn to write of an image: of each reference its sentences of the aspect, as one text.

    A reference of one sentence is a text of one aspect; a paragraph is a text of each aspect that it speaks of. Where
    the record has its own ``aspects``, these are the texts, all sentences of an aspect as one.

    Args:
        record: an image and its references.

    Returns:
        Distinct texts in order of first appearance, for each of ``ASPECTS`` and each further aspect of the record.
    """
    if record.aspects is not None:
        own = {name: [" ".join(sentences)] if sentences else [] for name, sentences in record.aspects.items()}
        return dict.fromkeys(ASPECTS, []) | own
    return {aspect: list(texts) for aspect, texts in _texts(record.captions).items()}


def router_prompt(aspect: str, sentences: Sequence[str]) -> str:
    """What the router should write to the expert of ``aspect``: a question that names what the sentences mention.

    Args:
        aspect: one of ``ASPECTS``, or one of the data's own.
        sentences: the sentences of that aspect of one image (or a question about it).

    Returns:
        One short question in English. Where no noun is known it is a general one.

    >>> router_prompt("relation", ["Many planes are parked between the terminal and a runway."])
    'Where are the planes, the terminal and the runway relative to each other?'
    """
    prompts = {"theme": _theme_prompt, "object": _object_prompt, "relation": _relation_prompt}
    if aspect in prompts:
        return prompts[aspect](sentences)
    named = _named(sentences)[:_MAX_NAMED]
    return f"Describe the {aspect} of {_join(named) if named else 'this image'}."


def distinct(captions: Iterable[str]) -> list[str]:
    """Captions that differ in more than case, spaces and punctuation, in order of first appearance."""
    seen: dict[tuple[str, ...], str] = {}
    for caption in captions:
        seen.setdefault(_key(caption), caption)
    return list(seen.values())


def _key(text: str) -> tuple[str, ...]:
    """Equal for texts that differ only in case, spaces and punctuation."""
    return tuple(words(text))


@lru_cache(maxsize=65536)
def _texts(captions: tuple[str, ...]) -> dict[str, list[str]]:
    places = {_key(text): aspect for aspect, texts in _split(captions).items() for text in texts}
    texts: dict[str, list[str]] = {aspect: [] for aspect in ASPECTS}
    for caption in captions:
        sentences = distinct(split_sentences(caption))
        for aspect in ASPECTS:
            texts[aspect].append(" ".join(text for text in sentences if places[_key(text)] == aspect))
    return {aspect: distinct(filter(None, of_aspect)) for aspect, of_aspect in texts.items()}


@lru_cache(maxsize=65536)
def _split(captions: tuple[str, ...]) -> dict[str, list[str]]:
    sentences = distinct(sentence for caption in captions for sentence in split_sentences(caption))
    aspects = [aspect_of(sentence) for sentence in sentences]
    for empty in ASPECTS:
        if empty in aspects:
            continue
        # max keeps the first of equals, so the result depends on the captions' order only.
        offers = [
            (_evidence(sentence)[empty], place)
            for place, sentence in enumerate(sentences)
            if aspects.count(aspects[place]) > 1
        ]
        strength, place = max(offers, key=lambda offer: offer[0], default=(0, 0))
        if strength:
            aspects[place] = empty
    return {name: [text for text, aspect in zip(sentences, aspects) if aspect == name] for name in ASPECTS}


@lru_cache(maxsize=65536)
def _evidence(sentence: str) -> dict[str, int]:
    """How strongly a sentence speaks of each aspect: 0 not at all, 1 where no other sentence does, 2 to 4 clearly."""
    tokens = words(_DIGITS.sub(" two ", sentence))
    nouns = mentions(tokens)
    counted = [
        replace(one, noun=replace(one.noun, kind="thing")) if _is_counted(one, tokens) else one for one in nouns
    ]
    ground = _GROUND.match(sentence)
    scene = slice(len(mentions(words(ground[0]))) if ground else 0, None)
    return {
        "theme": _theme(tokens, nouns[scene], counted[scene]),
        "object": _object(counted),
        "relation": _relation(tokens, nouns),
    }


def _is_counted(mention: Mention, tokens: Sequence[str]) -> bool:
    """Whether a number stands before it ("four green tennis courts"): the sentence says how many there are."""
    return mention.is_plural and not _NUMBERS.isdisjoint(tokens[max(0, mention.start - 3) : mention.start])


def _theme(tokens: list[str], nouns: list[Mention], counted: list[Mention]) -> int:
    if _KIND_OF_IMAGE.search(" ".join(tokens)):  # "This is a high-resolution aerial image of two boats."
        return 4
    if not nouns:  # "The image does not specify its resolution."
        return 2 if not set(_IMAGE_WORDS).isdisjoint(tokens) else 0
    if counted[0].noun.kind != "thing":
        return 4 if counted[0].noun.kind == "area" else 3
    if any(mention.noun.kind == "area" for mention in counted):
        return 2
    return 1 if nouns[0].noun.kind != "thing" or any(mention.noun.kind == "area" for mention in nouns) else 0


def _object(nouns: list[Mention]) -> int:
    if not nouns:
        return 1
    if nouns[0].noun.kind == "thing":
        return 3
    return 2 if any(mention.noun.kind != "area" for mention in nouns) else 0


def _relation(tokens: list[str], nouns: list[Mention]) -> int:
    if _PLACE_IN_IMAGE.search(" ".join(tokens)):
        return 2
    things = {mention.noun for mention in nouns}
    has_two_things = len(things) > 1 or (things and not PRONOUNS.isdisjoint(tokens))
    if not has_two_things:
        return 0
    if spatial_spans(tokens):
        return 2
    return 1 if not PLACING.isdisjoint(tokens) else 0


def _theme_prompt(sentences: Sequence[str]) -> str:
    named = [mention.noun for mention in _named(sentences, modifiers=True) if mention.noun.kind != "thing"]
    named.sort(key=lambda noun: noun.kind != "area")  # stable: areas first, else as mentioned most
    if not named:
        return "What kind of scene is this?"
    if len(named) == 1:
        return f"What kind of {named[0].singular} is this?"
    return f"What kind of {named[0].singular} is this, and what is the {named[1].singular} like?"


def _object_prompt(sentences: Sequence[str]) -> str:
    mentioned = _named(sentences)
    named = [mention for mention in mentioned if mention.noun.kind != "area"] or mentioned
    if not named:
        return "Which objects are there, and what do they look like?"
    question = f"What {_do(named[:_MAX_NAMED])} {_join(named[:_MAX_NAMED])} look like"
    counted = any(mention.is_plural for mention in named[:_MAX_NAMED])
    return question + (", and how many are there?" if counted else "?")


def _relation_prompt(sentences: Sequence[str]) -> str:
    named = _named(sentences)[:_MAX_NAMED]
    if not named:
        return "Where do the objects lie relative to each other?"
    if len(named) > 1 or named[0].is_plural:
        return f"Where are {_join(named)} relative to each other?"
    return f"Where is {_join(named)} in this image?"


def _named(sentences: Sequence[str], modifiers: bool = False) -> list[Mention]:
    """The nouns of the sentences, each once, those of most sentences first; plural where any sentence has it so.

    A singular noun right before another one only describes it (the "airport" of "airport terminal"), and is left out
    unless ``modifiers``.
    """
    best: dict[Noun, Mention] = {}
    count: Counter[Noun] = Counter()
    for sentence in sentences:
        nouns = mentions(words(sentence))
        heads = [
            mention
            for mention, after in zip(nouns, [*nouns[1:], None])
            if modifiers or after is None or mention.is_plural or mention.end != after.start
        ]
        count.update({mention.noun for mention in heads})
        for mention in heads:
            if mention.noun not in best or mention.is_plural:
                best[mention.noun] = mention
    return sorted(best.values(), key=lambda mention: -count[mention.noun])  # stable: first mentioned first


def _join(named: Sequence[Mention]) -> str:
    texts = [f"the {mention.text}" for mention in named]
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} and {texts[-1]}"


def _do(named: Sequence[Mention]) -> str:
    return "do" if len(named) > 1 or named[0].is_plural else "does"
