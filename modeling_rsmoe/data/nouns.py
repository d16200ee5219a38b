"""The nouns of a sentence: those of the word list, and any other that TextBlob's tagger finds.

[our decision] The word list (``lexicon``) says which nouns are scenes and which spellings mean the same; it need not
know every thing that can be seen. What it does not know is found by its part of speech and is a ``thing``, or a scene
where its last word is one of the list ("fishing village"). Words that only measure, place or show ("a row of", "the
picture") are no nouns here.
"""

from functools import lru_cache

from textblob.en import tag
from textblob.en.inflect import singularize

from .lexicon import LEXICON, NOUNS, Mention, Noun, listed_mentions, spatial_spans


MAX_COMPOUND = 4  # words of a noun; more in a row are no English
# Of the tagger's nouns, those that name nothing that can be seen.
_NOT_SEEN = frozenset(LEXICON["not_seen"].replace(",", " ").split())
_NOUN_TAGS = ("NN", "NNS")


def mentions(words: list[str]) -> list[Mention]:
    """The nouns in a sentence's lower-case words, in order.

    Args:
        words: as of ``cleaning.words``.

    Returns:
        Nouns of the word list (the longest match wins), and between them other nouns, as many words as stand together,
        the last four at most. A noun before another one only describes it ("concrete" of "concrete roof") and is left
        out where the list does not know it.
    """
    return list(_mentions(tuple(words)))


@lru_cache(maxsize=65536)
def _mentions(words: tuple[str, ...]) -> tuple[Mention, ...]:
    listed = listed_mentions(list(words))
    taken = {place for mention in listed for place in range(mention.start, mention.end)}
    taken |= {place for start, end in spatial_spans(list(words)) for place in range(start, end)}
    tags = [of_word for _, of_word in tag(" ".join(words), tokenize=False)] if len(taken) < len(words) else []
    found, start = list(listed), 0
    while start < len(tags):
        end = start
        while end < len(words) and end not in taken and tags[end] in _NOUN_TAGS and words[end] not in _NOT_SEEN:
            end += 1
        if end > start and not any(mention.start == end for mention in listed):
            found.append(_mention(words, max(start, end - MAX_COMPOUND), end, tags[end - 1] == "NNS"))
        start = max(end, start + 1)
    return tuple(sorted(found, key=lambda mention: mention.start))


def _mention(words: tuple[str, ...], start: int, end: int, is_plural: bool) -> Mention:
    last = singularize(words[end - 1]) if is_plural else words[end - 1]
    known = NOUNS.get((last,))
    singular, text = " ".join([*words[start : end - 1], last]), " ".join(words[start:end])
    return Mention(Noun(singular, text, known[0].kind if known else "thing"), is_plural, start, end)
