"""What came of a place on two dates: both described scenes, and what their texts name differently, tile by tile."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from .change_words import NOTE, Difference, compare, count_nouns, summarize_differences
from .grid import Grid, Window
from .result import SceneResult, SceneTask
from .style import OTHER


if TYPE_CHECKING:
    from ..utils.rasters.raster import Raster
    from .describe import Tile

# Of a tile's columns those that are the same on both dates.
_COMMON = ("tile", *Window._fields, "window", "valid", "model", "revision", "geometry")


@dataclass(frozen=True)
class TileChange:
    """A tile on both dates.

    Attributes:
        before: the tile of the earlier date.
        after: of the later date; number, window and valid share are the same.
        difference: of their texts.
    """

    before: "Tile"
    after: "Tile"
    difference: Difference

    @property
    def number(self) -> int:
        """In the grid, row by row, from 0."""
        return self.before.number

    @property
    def window(self) -> Window:
        """In pixels of the common grid."""
        return self.before.window

    @property
    def confidence(self) -> float | None:
        """Of the less likely text."""
        known = [tile.confidence for tile in (self.before, self.after) if tile.confidence is not None]
        return min(known, default=None)


@dataclass(frozen=True)
class ChangeResult:
    """A place described on two dates.

    Attributes:
        before: the earlier date, a scene on the common grid.
        after: the later date.
    """

    before: SceneResult
    after: SceneResult

    @property
    def raster(self) -> "Raster":
        """That of the earlier date: it has the common grid."""
        return self.before.raster

    @property
    def task(self) -> SceneTask:
        """What each date was asked."""
        return self.before.task

    @property
    def grid(self) -> Grid:
        """The tiles of both dates."""
        return self.before.grid

    @property
    def num_skipped(self) -> int:
        """Tiles that are mostly without data on one of the dates."""
        return self.before.num_skipped

    @cached_property
    def tiles(self) -> list[TileChange]:
        """The tiles that were described, in the grid's order."""
        pairs = zip(self.before.tiles, self.after.tiles, strict=True)
        return [TileChange(before, after, compare(before, after)) for before, after in pairs]

    @staticmethod
    def topic(tile: Any) -> str:
        """What a tile is colored by: whether its dates differ."""
        return "differs" if tile.difference.differs else OTHER

    @property
    def text(self) -> str:
        """What the descriptions of all tiles name differently."""
        return summarize_differences([tile.difference for tile in self.tiles])

    def record(self) -> dict[str, Any]:
        """Both dates as plain JSON."""
        differences = [tile.difference for tile in self.tiles]
        return {
            "difference": self.text,
            "note": NOTE,
            "tiles": len(self.tiles),
            "differing": sum(difference.differs for difference in differences),
            "appears": count_nouns(difference.appears for difference in differences),
            "disappears": count_nouns(difference.disappears for difference in differences),
            "before": self.before.record(),
            "after": self.after.record(),
        }

    @staticmethod
    def columns(tile: TileChange, before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
        """A tile's flat columns, from those of both dates: what can differ twice, with `_before` and `_after`."""
        difference = tile.difference
        columns: dict[str, Any] = {"tile": tile.number, "differs": difference.differs, "difference": difference.text}
        for kind, nouns in (("appears", difference.appears), ("disappears", difference.disappears)):
            columns[kind] = ", ".join(nouns)
            for expert in tile.before.expert_texts:
                columns[f"{kind}_{expert}"] = ", ".join(noun for noun, experts in nouns.items() if expert in experts)
        for name in before:
            if name not in _COMMON:
                columns |= {f"{name}_before": before[name], f"{name}_after": after[name]}
        return columns | {name: before[name] for name in before if name in _COMMON}

    @staticmethod
    def tile_record(tile: TileChange, before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
        """A tile as JSON, from the records of both dates: what can differ under `before` and `after`."""
        difference = tile.difference
        return {
            "tile": tile.number,
            "difference": difference.text,
            "appears": difference.appears,
            "disappears": difference.disappears,
            "before": {name: value for name, value in before.items() if name not in _COMMON},
            "after": {name: value for name, value in after.items() if name not in _COMMON},
            **{name: value for name, value in before.items() if name in _COMMON},
        }
