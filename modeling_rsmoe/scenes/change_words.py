"""What the texts of two dates name differently: nouns, by the word list of `data.lexicon`.

[our decision] A noun appears if two experts name it on the later date and no text of the earlier one does, neither an
expert's nor the caption; it disappears the other way round. One expert is not enough: where nothing has changed that
would be a difference in two of three tiles (docs/how-to/scenes.md). Number, order and wording are no difference. How
things lie is shown in the texts and not compared: its words change with every wording.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..data.cleaning import words
from ..data.lexicon import listed_nouns


if TYPE_CHECKING:
    from .describe import Tile

MIN_EXPERTS = 2  # that name a noun, where there are so many
NUM_SHOWN = 8  # nouns in a sentence about a scene
NOTE = "two descriptions compared, not a change model: they also differ where nothing has changed"


@dataclass(frozen=True)
class Difference:
    """What the texts of a tile name on one date alone.

    Attributes:
        appears: nouns of the later date, and the experts that name each.
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
            return "The same words on both dates." if self.is_verbatim else "No difference that two experts name."
        return sentences(self.appears, self.disappears)


def compare(before: "Tile", after: "Tile", min_experts: int = MIN_EXPERTS) -> Difference:
    """The difference of a tile's texts on two dates, by nouns that so many experts name."""
    return Difference(
        appears=_named_alone(after, before, min_experts),
        disappears=_named_alone(before, after, min_experts),
        is_verbatim=(before.text, before.expert_texts) == (after.text, after.expert_texts),
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


def _named_alone(tile: "Tile", other: "Tile", min_experts: int) -> dict[str, list[str]]:
    """Nouns of one date alone, and the experts that name each; of a base LM alone those of its caption."""
    known = {noun for text in (*other.expert_texts.values(), other.text) for noun in listed_nouns(words(text))}
    named: dict[str, list[str]] = {}
    for expert, text in (tile.expert_texts or {"caption": tile.text}).items():
        for noun in listed_nouns(words(text)):
            if noun not in known:
                named.setdefault(noun, []).append(expert)
    enough = min(min_experts, max(1, len(tile.expert_texts)))
    return {noun: experts for noun, experts in named.items() if len(experts) >= enough}
