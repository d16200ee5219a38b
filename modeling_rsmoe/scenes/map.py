"""One HTML page to look at captioned scenes and images: self-contained, it opens from the file without a network.

Names of files and texts of a model are untrusted. They are data of the page's script, which sets them as text; the
template escapes what it shows itself.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors_rsmoe import RSMoEError
from ..utils.files import write_whole
from ..utils.html import COLORS, data_url, render
from .sheet import Sheet


SIDE = 1600  # pixels of the longer side of a picture: about half a megabyte
MAX_TILES = 20_000  # of a page: outlines that a browser still draws quickly [our decision]
MAX_SHEETS = 200  # of a page: about 20 MB with their pictures [our decision]


def check_map(sheets: int, tiles: int) -> None:
    """
    Raises:
        RSMoEError: more images and scenes, or more tiles, than a page can show.
    """
    if sheets > MAX_SHEETS:
        raise RSMoEError(f"a map shows at most {MAX_SHEETS} images, not {sheets}: make several, or leave --map out")
    if tiles > MAX_TILES:
        raise RSMoEError(
            f"a map of {tiles:,} tiles is too heavy for a browser (at most {MAX_TILES:,}): give a larger --tile, or "
            "--output scene.gpkg for a GIS program"
        )


def write_map(sheets: Sequence[Sheet], output: str | Path) -> None:
    """Write the page, whole or not at all.

    Args:
        sheets: at least one.

    Raises:
        RSMoEError: `check_map`. OSError: the disk is full, for example.
    """
    check_map(len(sheets), sum(len(sheet.tiles) for sheet in sheets))
    template = Path(__file__).with_name("map.html")
    title = _text(sheets[0].name.replace("\\", "/").rsplit("/", 1)[-1])
    title += f" and {len(sheets) - 1} more" if len(sheets) > 1 else ""
    page = render(template, title=title, model=_text(sheets[0].model), sheets=[_data(sheet) for sheet in sheets])
    write_whole(output, page)


def _data(sheet: Sheet) -> dict[str, Any]:
    """A sheet for the page's script."""
    experts = list(dict.fromkeys(name for tile in sheet.tiles for name in tile.parts))
    return {
        "name": _text(sheet.name),
        "asked": _text(sheet.asked),
        "text": _text(sheet.text),
        "picture": data_url(sheet.picture),
        "width": sheet.width,
        "height": sheet.height,
        "skipped": sheet.skipped,
        "tiles": [
            {
                "number": tile.number,
                "window": list(tile.window),
                "text": _text(tile.text),
                "place": None if place is None else f"{place[1]:.5f}, {place[0]:.5f}",
                "steps": [
                    [name, experts.index(name) % len(COLORS), _text(tile.router_prompts.get(name, "")), _text(part)]
                    for name, part in tile.parts.items()
                ],
            }
            for tile, place in zip(sheet.tiles, sheet.places, strict=True)
        ],
    }


def _text(text: str) -> str:
    """File names may hold bytes that are no text."""
    return text.encode("utf-8", "replace").decode("utf-8")
