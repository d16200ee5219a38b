"""A caption of a whole scene, from its tiles.

[our decision] For each expert, the text of the most typical tile is chosen: the one whose words are nearest to the
words of all tiles' texts. The base LM then reads these expert texts beside an overview of the scene, as it reads those
of one image, and writes the caption. Beside it stands what the tiles' captions mention, with the share of tiles that
do, because a caption names only a few things. Of a scene of one tile, the tile's own caption is the scene's. Tiles
whose caption is withheld, as less sure than was asked for, have no part in it.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..data.lexicon import listed_nouns


if TYPE_CHECKING:
    from ..inference import Predictor
    from ..utils.rasters.raster import Raster
    from .describe import Tile

NUM_MENTIONED = 8  # nouns
_OVERVIEW_SIDE = 1024


@dataclass(frozen=True)
class Summary:
    """The caption of a scene, the expert texts that it was written from, and the nouns that captions of tiles mention
    with the share of tiles whose caption does, the most frequent first."""

    caption: str
    expert_texts: dict[str, str]
    mentioned: dict[str, float]


def summarize(tiles: Sequence["Tile"], raster: "Raster", predictor: "Predictor", instruction: str) -> Summary:
    """The summary of a scene from its tiles, at least one, which were described under the instruction."""
    sure = [tile for tile in tiles if not tile.is_withheld]
    if len(tiles) == 1 or not sure:
        return Summary(tiles[0].text, tiles[0].expert_texts, mentioned_nouns([tiles[0].text]))
    expert_texts = {name: most_typical([tile.expert_texts[name] for tile in sure]) for name in sure[0].expert_texts}
    caption = predictor.rewrite(raster.overview(_OVERVIEW_SIDE).image, instruction, expert_texts)
    return Summary(caption, expert_texts, mentioned_nouns([tile.text for tile in tiles]))


def most_typical(texts: Sequence[str]) -> str:
    """The text whose words are nearest (by cosine) to the mean of all texts' words; the first of equal ones."""
    word_sets = [set(_words(text)) for text in texts]
    counts = Counter(word for words in word_sets for word in words)
    similarities = [sum(counts[word] for word in words) / max(1, len(words)) ** 0.5 for words in word_sets]
    return texts[similarities.index(max(similarities))]


def mentioned_nouns(captions: Iterable[str]) -> dict[str, float]:
    """The `NUM_MENTIONED` nouns that most captions mention, and the share that do; ties as the captions have them."""
    counts: Counter[str] = Counter()
    num_captions = 0
    for caption in captions:
        num_captions += 1
        counts.update(listed_nouns(_words(caption)))
    return {noun: round(count / num_captions, 3) for noun, count in counts.most_common(NUM_MENTIONED)}


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z]+", text.lower())
