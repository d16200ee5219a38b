"""What a scene is asked, and what came of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from .answers import CombinedAnswer
from .grid import Grid
from .style import legend, tile_topic
from .summary import Summary


if TYPE_CHECKING:
    from ..utils.rasters.raster import Raster
    from .describe import Tile


@dataclass(frozen=True)
class SceneTask:
    """What every tile is asked, by which checkpoint.

    Attributes:
        instruction: as the model reads it.
        question: that the instruction was made of (`question_instruction`); None for captions.
        model: the checkpoint's name.
        revision: its commit on the Hub, or the hash of its folder.
    """

    instruction: str
    question: str | None
    model: str = ""
    revision: str = ""

    @property
    def kind(self) -> Literal["caption", "answer"]:
        """What the texts are; outputs call their field so."""
        return "caption" if self.question is None else "answer"

    @property
    def user_text(self) -> str:
        """The question, or else the instruction: what the user wrote."""
        return self.instruction if self.question is None else self.question

    def texts(self, text: str) -> dict[str, str]:
        """A text as outputs hold it, under its name; an answer beside its question."""
        question = {} if self.question is None else {"question": self.question}
        return {**question, self.kind: text}


@dataclass(frozen=True)
class SceneResult:
    """A described scene.

    Attributes:
        task: what it was asked.
        raster: the scene; it may be closed, and opens again when it is read.
        grid: its tiles.
        tiles: those that were described, in the grid's order.
        outcome: a `Summary` of captions, or the combined answer.
    """

    task: SceneTask
    raster: "Raster"
    grid: Grid
    tiles: "Sequence[Tile]"
    outcome: Summary | CombinedAnswer

    @property
    def text(self) -> str:
        """The scene's caption or answer."""
        return self.outcome.caption if isinstance(self.outcome, Summary) else self.outcome.answer

    @property
    def num_skipped(self) -> int:
        """Tiles that are mostly without data."""
        return len(self.grid) - len(self.tiles)

    def topic(self, tile: Any) -> str:
        """What a tile is colored by: its answer, or the first noun of its caption."""
        return tile_topic(self.task, tile)

    def geojson(self) -> dict[str, Any]:
        """The tiles as a GeoJSON `FeatureCollection`, as `outputs` writes it: each with a Leaflet style for maps."""
        from .outputs import feature_collection  # not at the top: it imports this file

        return feature_collection([self])

    def legend(self) -> dict[str, str]:
        """What the colors of `geojson` stand for: hex colors by answer, or by the first noun of a caption."""
        return legend([self])

    def record(self) -> dict[str, Any]:
        """The scene as plain JSON."""
        outcome = self.outcome
        record: dict[str, Any] = {"scene": self.raster.name, self.task.kind: self.text}
        if isinstance(outcome, Summary):
            record |= {"expert_texts": outcome.expert_texts, "mentioned": outcome.mentioned}
            record |= {"instruction": self.task.instruction}
        else:
            record |= {"how": outcome.how, "question": self.task.question}
        return record | {
            "tiles": len(self.tiles),
            "skipped": self.num_skipped,
            "tile_size": self.grid.tile,
            "overlap": self.grid.overlap,
            **raster_record(self.raster),
            "model": self.task.model,
            "revision": self.task.revision,
        }


def raster_record(raster: "Raster") -> dict[str, Any]:
    """How a raster was read, as plain JSON."""
    stretch = raster.stretch
    return {
        "width": raster.width,
        "height": raster.height,
        "bands": list(raster.bands),
        "stretch": stretch and {"low": list(stretch.low), "high": list(stretch.high)},
        "crs": raster.crs and raster.crs.to_string(),
        "notes": raster.notes,
    }
