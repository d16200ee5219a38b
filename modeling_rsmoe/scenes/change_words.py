"""What the texts of two dates name differently: nouns, by the word list of `data.lexicon`.

[our decision] A noun appears if a text of the later date names it and no text of the earlier one does, neither an
expert's nor the caption; it disappears the other way round. So a thing that another expert speaks of this time is no
difference, nor are number, order and wording. How things lie is shown in the texts and not compared: its words change
with every wording.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..data.cleaning import words
from ..data.lexicon import mentions


if TYPE_CHECKING:
    from .describe import Tile

CAPTION = "caption"  # beside the experts' names
NUM_SHOWN = 8  # nouns in a sentence about a scene
NOTE = "two descriptions compared, not a change model: they also differ where nothing has changed"


@dataclass(frozen=True)
class Difference:
    """What the texts of a tile name on one date alone.

    Attributes:
        appears: nouns of the later date, and whose texts name each: experts, or `caption`.
        disappears: nouns of the earlier date, likewise.
        is_verbatim: whether all texts are equal.
    """

    appears: dict[str, list[str]]
    disappears: dict[str, list[str]]
    is_verbatim: bool

    @property
    def differs(self) -> bool:
        """Whether either date names what the other does not."""
        return bool(self.appears or self.disappears)

    @property
    def text(self) -> str:
        """In a sentence or two."""
        if not self.differs:
            return "The same words on both dates." if self.is_verbatim else "The same things in other words."
        return sentences(self.appears, self.disappears)


def compare(before: "Tile", after: "Tile") -> Difference:
    """The difference of a tile's texts on two dates."""
    texts_before, texts_after = _texts(before), _texts(after)
    return Difference(
        appears=_named_alone(texts_after, texts_before),
        disappears=_named_alone(texts_before, texts_after),
        is_verbatim=texts_before == texts_after,
    )


def sentences(appears: Iterable[str], disappears: Iterable[str]) -> str:
    """What is named on one date alone."""
    named = (("after, not before", list(appears)), ("before, not after", list(disappears)))
    return " ".join(f"Named {when}: {', '.join(nouns)}." for when, nouns in named if nouns)


def summarize_differences(differences: Sequence[Difference]) -> str:
    """The same of all tiles, at least one, with the number of tiles in which a noun appears or disappears."""
    num_differing = sum(difference.differs for difference in differences)
    head = f"In {num_differing} of {len(differences)} tiles the descriptions name different things."
    counts = (count_nouns(one.appears for one in differences), count_nouns(one.disappears for one in differences))
    shown = ([f"{noun} ({count})" for noun, count in list(counted.items())[:NUM_SHOWN]] for counted in counts)
    return " ".join(filter(None, (head, sentences(*shown))))


def count_nouns(named: Iterable[Iterable[str]]) -> dict[str, int]:
    """In how many tiles each noun is named, the most frequent first."""
    return dict(Counter(noun for nouns in named for noun in nouns).most_common())


def _texts(tile: "Tile") -> dict[str, str]:
    return {**tile.expert_texts, CAPTION: tile.text}


def _named_alone(texts: dict[str, str], others: dict[str, str]) -> dict[str, list[str]]:
    known = {noun for text in others.values() for noun in _nouns(text)}
    named: dict[str, list[str]] = {}
    for name, text in texts.items():
        for noun in _nouns(text):
            if noun not in known:
                named.setdefault(noun, []).append(name)
    return named


def _nouns(text: str) -> list[str]:
    """Each once, in their order."""
    return list(dict.fromkeys(mention.noun.singular for mention in mentions(words(text))))
