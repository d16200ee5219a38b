"""Colors of tiles on a web map: for each tile a Leaflet style, as ipyleaflet, leafmap and folium read it.

[our decision] Tiles are colored by their answer, or by the first noun of their caption. The most frequent of these
have a color each, which the color-blind can tell apart too; all others are grey.
"""

import re
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..data.lexicon import listed_nouns


if TYPE_CHECKING:
    from .change_result import ChangeResult
    from .describe import Tile
    from .result import SceneResult, SceneTask

COLORS = ("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7")  # of Okabe and Ito
OTHER, GREY = "other", "#999999"


def legend(results: "Sequence[SceneResult | ChangeResult]") -> dict[str, str]:
    """The color of each answer or noun, the most frequent first; of all others under `OTHER`."""
    counts = Counter(result.topic(tile) for result in results for tile in result.tiles)
    counts.pop(OTHER, None)
    topics = [topic for topic, _ in counts.most_common(len(COLORS))]
    return dict(zip(topics, COLORS)) | {OTHER: GREY}


def tile_style(topic: str, colors: dict[str, str], confidence: float | None = None) -> dict[str, Any]:
    """Leaflet's path options for a tile of a topic; `colors` as of `legend`. The less likely a text is right, the more
    its tile fades."""
    color = colors.get(topic, GREY)
    return {
        "color": color,
        "weight": 1,
        "fillColor": color,
        "fillOpacity": 0.35 if confidence is None else round(0.5 * confidence, 2),
    }


def tile_topic(task: "SceneTask", tile: "Tile") -> str:
    """A tile's answer, or the first noun of its caption."""
    if task.question is not None:
        return tile.text.strip().rstrip(".").lower() or OTHER
    found = listed_nouns(re.findall(r"[a-z]+", tile.text.lower()))
    return found[0] if found else OTHER
