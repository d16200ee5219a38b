"""The nouns and spatial words of remote-sensing captions, as a word list: no part-of-speech tagger is needed.

[our decision] The list was made by reading the words of the train and val captions of RSICD, UCM-Captions,
NWPU-Captions and Sydney-Captions, and of the train questions of RSVQA and RSIVQA, by falling frequency. Three kinds of
nouns:

- ``area``: a scene or land use, which can fill an image ("residential area", "forest", "airport");
- ``structure``: one large thing that is the scene when a sentence is about it and a thing when not ("bridge",
  "river");
- ``thing``: everything else that is seen ("car", "tree", "roof").
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import yaml


Kind = Literal["area", "structure", "thing"]


@dataclass(frozen=True)
class Noun:
    """One entry of the word list."""

    singular: str
    plural: str
    kind: Kind


@dataclass(frozen=True)
class Mention:
    """One noun as it occurs in a sentence: ``words[start:end]``."""

    noun: Noun
    is_plural: bool
    start: int
    end: int

    @property
    def text(self) -> str:
        return self.noun.plural if self.is_plural else self.noun.singular


LEXICON: dict[str, Any] = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
_ALWAYS_PLURAL = ("goods", "people", "woods")
# Nouns that are adjectives as well: "square houses", "diamond shaped", "the center building".
_ALSO_ADJECTIVES = ("square", "diamond", "center", "centre", "line", "country", "rail", "construction")


def _plural(singular: str) -> str:
    if singular.endswith(("s", "sh", "ch", "x")):
        return singular + "es"
    if singular.endswith("y") and singular[-2] not in "aeiou":
        return singular[:-1] + "ies"
    return singular + "s"


def _build() -> dict[tuple[str, ...], tuple[Noun, bool]]:
    """Every spelling of every noun, as words -> (noun, whether the spelling is a plural)."""
    forms: dict[tuple[str, ...], tuple[Noun, bool]] = {}
    for kind in get_args(Kind):
        for entry in LEXICON[kind].replace(",\n", ",").splitlines():  # a line that ends with a comma goes on
            head, _, others = entry.partition("=")
            singular, _, plural = head.strip().partition("/")
            noun = Noun(singular, plural or _plural(singular), kind)
            always = singular in _ALWAYS_PLURAL
            counted = always or noun.plural != singular  # "snows" is still "the snow"
            forms.setdefault(tuple(noun.plural.split()), (noun, counted))
            # A slip of the published questions: "cemeterys".
            forms.setdefault(tuple(f"{singular}s".split()), (noun, counted))
            forms[tuple(singular.split())] = (noun, always)
            for other in (name.strip() for name in others.split(",") if name.strip()):
                forms.setdefault(tuple(other.split()), (noun, always))
                forms.setdefault(tuple(_plural(other).split()), (noun, counted))
    return forms


def _spatial() -> dict[str, list[tuple[str, ...]]]:
    """The spatial phrases by their first word, the longest first."""
    phrases = [tuple(phrase.split()) for phrase in LEXICON["spatial"].replace("\n", ",").split(",") if phrase.strip()]
    by_first: dict[str, list[tuple[str, ...]]] = {}
    for phrase in sorted(phrases, key=len, reverse=True):
        by_first.setdefault(phrase[0], []).append(phrase)
    return by_first


NOUNS = _build()
SPATIAL = _spatial()
LONGEST_NOUN = max(len(form) for form in NOUNS)

# Weaker placing words: they place a thing on a ground ("marks on the runway"). "in" is left out: "in an industrial
# area" says what the scene is, not how two things lie.
PLACING = frozenset({"on", "at", "by", "off", "beyond", "into", "from"})
# Words that stand for the second thing of a relation.
PRONOUNS = frozenset({"it", "them", "other", "others", "another"})


def listed_mentions(words: list[str]) -> list[Mention]:
    """The nouns of the list in a sentence's lower-case words, in order; the longest match wins."""
    nouns: list[Mention] = []
    spatial = {place for start, end in spatial_spans(words) for place in range(start, end)}  # "in the center of"
    start = 0
    while start < len(words):
        match = None if start in spatial else _match(words, start)
        if match is None:
            start += 1
            continue
        following = words[match.end : match.end + 1]
        adjective = words[start] in _ALSO_ADJECTIVES and match.end == start + 1
        if not (adjective and following and (following[0] in ("shaped", "shape") or _match(words, match.end))):
            nouns.append(match)
        start = match.end
    return nouns


def listed_nouns(words: list[str]) -> list[str]:
    """The nouns of the list in a sentence's lower-case words: in the singular, each once, in order."""
    return list(dict.fromkeys(mention.noun.singular for mention in listed_mentions(words)))


def _match(words: list[str], start: int) -> Mention | None:
    for length in range(min(LONGEST_NOUN, len(words) - start), 0, -1):
        form = NOUNS.get(tuple(words[start : start + length]))
        if form is not None:
            return Mention(form[0], form[1], start, start + length)
    return None


def spatial_spans(words: list[str]) -> list[tuple[int, int]]:
    """Where the spatial words stand, as ``(start, end)`` of non-overlapping spans."""
    spans = []
    start = 0
    while start < len(words):
        for phrase in SPATIAL.get(words[start], ()):
            if tuple(words[start : start + len(phrase)]) == phrase:
                spans.append((start, start + len(phrase)))
                start += len(phrase)
                break
        else:
            start += 1
    return spans
