"""`rsmoe caption BEFORE AFTER --change`: two dates on one grid, and what is printed of them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.panel import Panel
from rich.text import Text

from . import terminal


if TYPE_CHECKING:
    from ..scenes.change_result import ChangeResult
    from ..utils.rasters.raster import Raster


def align(rasters: "Sequence[Raster]", steps: terminal.Steps) -> "list[Raster]":
    """The two rasters on one grid, before a model is loaded."""
    from ..scenes.change import align_two

    steps("aligning two dates")
    return [*align_two(rasters)]


def describe(rasters: "Sequence[Raster]", *settings: Any) -> "ChangeResult":
    """Describe both dates and write `--output`; settings as of `describe_pair`."""
    from ..scenes.change import describe_pair

    before, after = rasters
    return describe_pair((before, after), *settings)  # type: ignore[arg-type]


def panel(result: "ChangeResult") -> Panel:
    """The dates' captions, what differs in the whole and in each tile."""
    from ..scenes.change_words import NOTE

    rows: list[tuple[Text, ...]] = []
    for tile in result.tiles[: terminal.MAX_SHOWN_TILES]:
        number = Text(f"tile {tile.number}", "dim")
        rows.append((number, Text("before", "dim"), terminal.shown(tile.before.text)))
        rows.append((Text(), Text("after", "dim"), terminal.shown(tile.after.text)))
        rows.append((Text(), Text("differs" if tile.difference.differs else "", "yellow"), Text(tile.difference.text)))
    rows += [(dots, Text(), rest) for dots, rest in terminal.more_tiles(len(result.tiles))]
    rows.append(())
    for when, scene in (("before", result.before), ("after", result.after)):
        rows.append((Text(when, "cyan"), Text(), terminal.shown(scene.raster.name)))
        rows.append((Text(), Text(), terminal.shown(scene.text, "bold")))
    counts = f"{len(result.tiles)} of {result.grid.tile} px on both dates"
    if result.num_skipped:
        counts += f", {result.num_skipped} skipped as mostly no data on one of them"
    rows.append((Text("tiles", "cyan"), Text(), Text(counts)))
    rows.append((Text("differs", "bold"), Text(), Text(result.text, "bold")))
    rows.append((Text("note", "dim"), Text(), Text(NOTE, "dim")))
    return terminal.panel(rows, 3, "two dates", result.task.model)
