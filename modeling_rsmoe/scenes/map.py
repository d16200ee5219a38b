"""One HTML page of captioned scenes and images: self-contained, it opens from the file without a network.

Names of files and texts of a model are untrusted. They are data of the page's script, which sets them as text; the
template escapes what it shows itself.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors_rsmoe import RSMoEError
from ..utils.files import write_whole
from ..utils.html import COLORS, data_url, render
from .change_words import NOTE, summarize_differences
from .describe import Tile
from .view import View


SIDE = 1600  # pixels of the longer side of an image: about half a megabyte
MAX_TILES = 20_000  # of a page: outlines that a browser still draws quickly [our decision]
MAX_VIEWS = 200  # of a page: about 20 MB with their images [our decision]


def check_map(num_views: int, num_tiles: int) -> None:
    """Refuse a page of more images and scenes, or more of their tiles, than a browser can show."""
    if num_views > MAX_VIEWS:
        raise RSMoEError(f"a map shows at most {MAX_VIEWS} images, not {num_views}: make several, or leave --map out")
    if num_tiles > MAX_TILES:
        raise RSMoEError(
            f"a map of {num_tiles:,} tiles is too heavy for a browser (at most {MAX_TILES:,}): give a larger --tile, "
            "or --output scene.gpkg for a GIS program"
        )


def write_map(views: Sequence[View], output: str | Path) -> None:
    """Write the page, whole or not at all."""
    check_map(len(views), sum(len(view.tiles) for view in views))
    template = Path(__file__).with_name("map.html")
    title = _text(views[0].name.replace("\\", "/").rsplit("/", 1)[-1])
    title += f" and {len(views) - 1} more" if len(views) > 1 else ""
    page = render(template, title=title, model=_text(views[0].model), views=[_data(view) for view in views])
    write_whole(output, page)


def _data(view: View) -> dict[str, Any]:
    """A view for the page's script."""
    experts = list(dict.fromkeys(name for tile in view.tiles for name in tile.expert_texts))
    data: dict[str, Any] = {
        "name": _text(view.name),
        "instruction": _text(view.instruction),
        "text": _text(view.text),
        "image": data_url(view.image),
        "width": view.width,
        "height": view.height,
        "skipped": view.num_skipped,
        "tiles": [
            {
                "number": tile.number,
                "window": list(tile.window),
                "place": None if place is None else f"{place[1]:.5f}, {place[0]:.5f}",
                **_texts(tile, experts),
            }
            for tile, place in zip(view.tiles, view.places, strict=True)
        ],
    }
    if view.after is not None:
        data["after"] = {name: value for name, value in _data(view.after).items() if name in ("name", "text", "image")}
        data |= {"difference": summarize_differences(view.differences), "note": NOTE}
        pairs = zip(data["tiles"], view.after.tiles, view.differences, strict=True)
        for shown, after, difference in pairs:
            shown["after"] = _texts(after, experts)
            shown |= {"difference": difference.text, "differs": difference.differs}
    return data


def _texts(tile: Tile, experts: list[str]) -> dict[str, Any]:
    return {
        "text": _text(tile.text),
        "confidence": tile.confidence,
        "steps": [
            [
                name,
                experts.index(name) % len(COLORS),
                _text(tile.router_prompts.get(name, "")),
                _text(text),
                tile.expert_confidences.get(name),
            ]
            for name, text in tile.expert_texts.items()
        ],
    }


def _text(text: str) -> str:
    """File names may hold bytes that are no text."""
    return text.encode("utf-8", "replace").decode("utf-8")
