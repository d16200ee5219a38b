"""Split an image's reference captions into what each expert learns: theme, object and relation sentences.

[our decision] The paper's data files show that captions were split by aspect, not how. The rule here needs no tagger:

1. a sentence with a spatial word and two nouns speaks of a **relation**;
2. else one with a scene word speaks of the **theme**: an area ("forest", "residential area") anywhere, or a structure
   ("bridge", "runway") that is the first noun of the sentence;
3. every other sentence speaks of **objects**.

Most sentences qualify for more than one aspect ("many planes are parked near the terminal in an airport"), so the
three experts of one image would often have nothing to learn from it. Hence a second step, for the sentences of one
image together: an aspect that is still empty takes the sentence that qualifies best, from an aspect that keeps another
one. Every sentence belongs to exactly one aspect of its image. docs/explanation/aspects.md shows what the rule does to
the data.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache

from .cleaning import words
from .lexicon import PLACING, PRONOUNS, Mention, Noun, spatial_spans
from .nouns import mentions
from .records import CaptionRecord
from .sentences import split_sentences


ASPECTS = ("theme", "object", "relation")

_IMAGE_WORDS = frozenset({"image", "picture", "photo", "photograph"})
_MAX_NAMED = 3  # things that a router prompt names, so that it stays a short line


def aspect_of(sentence: str) -> str:
    """The aspect of one sentence by itself (rules 1 to 3 of the module).

    >>> aspect_of("Many cars are parked near a building.")
    'relation'
    """
    evidence = _evidence(sentence)
    if evidence["relation"] >= 2:
        return "relation"
    return "theme" if evidence["theme"] else "object"


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
    """How strongly a sentence speaks of each aspect: 0 not at all, 1 it could, 2 and 3 clearly."""
    tokens = words(sentence)
    nouns = mentions(tokens)
    return {"theme": _theme(tokens, nouns), "object": _object(nouns), "relation": _relation(tokens, nouns)}


def _theme(tokens: list[str], nouns: list[Mention]) -> int:
    if not nouns:  # "This is a high-resolution aerial image."
        return 1 if not _IMAGE_WORDS.isdisjoint(tokens) and "is" in tokens else 0
    if nouns[0].noun.kind != "thing":
        return 3 if nouns[0].noun.kind == "area" else 2
    return 1 if any(mention.noun.kind == "area" for mention in nouns) else 0


def _object(nouns: list[Mention]) -> int:
    if not nouns:
        return 1
    if nouns[0].noun.kind == "thing":
        return 3
    return 2 if any(mention.noun.kind != "area" for mention in nouns) else 0


def _relation(tokens: list[str], nouns: list[Mention]) -> int:
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
