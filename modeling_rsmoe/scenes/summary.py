"""A caption of a whole scene, from its tiles.

[our decision] For each expert, the part of the most typical tile is chosen: the one whose words are nearest to the words
of all tiles' parts. The base LM then looks at the whole scene made small and reads these parts, as it reads the parts
of one image, and writes the caption. Beside it stands what the tiles' captions mention, with the share of tiles that do,
because a caption names only a few things. Of a scene of one tile, the tile's own caption is the scene's.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..data.lexicon import mentions


if TYPE_CHECKING:
    from .describe import Describer, Tile
    from .raster import Raster

MENTIONED = 8  # nouns
_OVERVIEW_SIDE = 1024


@dataclass(frozen=True)
class Summary:
    """Of a scene.

    Attributes:
        caption: of the whole.
        parts: of the most typical tile for each expert, which the caption was written from.
        mentioned: nouns that captions mention, and the share of tiles whose caption does, the most frequent first.
    """

    caption: str
    parts: dict[str, str]
    mentioned: dict[str, float]


def summarize(tiles: Sequence["Tile"], raster: "Raster", describer: "Describer") -> Summary:
    """The summary of a scene's described tiles, at least one."""
    if len(tiles) == 1:
        return Summary(tiles[0].text, tiles[0].parts, mentioned([tiles[0].text]))
    parts = {name: typical([tile.parts[name] for tile in tiles]) for name in tiles[0].parts}
    picture = raster.overview(_OVERVIEW_SIDE).image
    return Summary(describer.compose(picture, parts), parts, mentioned([tile.text for tile in tiles]))


def typical(texts: Sequence[str]) -> str:
    """The text whose words are nearest (by cosine) to the mean of all texts' words; the first of equal ones."""
    words = [set(_words(text)) for text in texts]
    counts = Counter(word for of_text in words for word in of_text)
    nearness = [sum(counts[word] for word in of_text) / max(1, len(of_text)) ** 0.5 for of_text in words]
    return texts[nearness.index(max(nearness))]


def mentioned(captions: Sequence[str]) -> dict[str, float]:
    """The `MENTIONED` nouns that most captions mention, and the share of captions that do."""
    counts: Counter[str] = Counter()
    for caption in captions:
        counts.update({mention.noun.singular for mention in mentions(_words(caption))})
    return {noun: round(count / len(captions), 3) for noun, count in counts.most_common(MENTIONED)}


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z]+", text.lower())
