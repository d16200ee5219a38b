"""The tiles of a raster through the model, batch by batch; finished tiles are logged, so that a stopped run continues.

Knows nothing about options, formats or how rasters are found.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..inference.resume import KeyedLog
from ..prompting_rsmoe import UNSURE
from ..utils.progress import Progress, no_progress
from ..utils.rasters.raster import no_data
from .grid import Grid, Window


if TYPE_CHECKING:
    from ..inference import Predictor
    from ..utils.rasters.raster import Raster, RasterImage

# A tile with less data than this is skipped, "mostly no data". Of a scene without a tile that has so much, those with
# at least half as much as its best tile are described [our decision].
MIN_VALID = 0.5


@dataclass(frozen=True)
class Tile:
    """A described tile.

    Attributes:
        number: in its grid, row by row, from 0.
        window: in pixels of the raster.
        valid: the share of its pixels that are data.
        text: the caption or answer.
        router_prompts: what each expert was asked, by name, in order.
        expert_texts: what each expert wrote, by name, in order.
        sentences: of a paragraph, each as `text` and `writer`.
        score: how well the text fits the tile, by the reranker; None where it did not choose. It is no probability.
        confidence: the probability that the text is right; None where the checkpoint was not fitted to say so.
        expert_confidences: likewise, of the expert texts.
    """

    number: int
    window: Window
    valid: float
    text: str
    router_prompts: dict[str, str]
    expert_texts: dict[str, str]
    score: float | None = None
    sentences: Sequence[Mapping[str, Any]] = ()
    confidence: float | None = None
    expert_confidences: Mapping[str, float | None] = field(default_factory=dict)

    @property
    def is_withheld(self) -> bool:
        """Whether there is no text that is as likely right as was asked for."""
        return self.text in UNSURE.values()


def log_path(output: Path) -> Path:
    """Where an unfinished run keeps its finished tiles: `scene.geojson.partial` beside `scene.geojson`."""
    return output.with_name(f"{output.name}.partial")


def tile_log(output: Path | None, settings: Mapping[str, Any]) -> KeyedLog:
    """The finished tiles of a run, by scene and number; skipped ones have a line without `text`. A scene's settings
    have a line of their own, under the number None."""
    path = None if output is None else log_path(output)
    return KeyedLog(path, settings, lambda line: (str(line["scene"]), None if "read" in line else int(line["tile"])))


def name_in_log(raster: "Raster") -> str:
    """What the lines of a scene are found by, whichever scenes stand beside it in a command."""
    return ", ".join(raster.paths)


def check_scene(log: KeyedLog, raster: "Raster") -> None:
    """Refuse, by name, a scene that is read in another way than the tiles of it that are finished."""
    stretch = raster.stretch and [raster.stretch.low, raster.stretch.high]
    size, scene = [raster.width, raster.height], name_in_log(raster)
    place = raster.transform and list(raster.transform)[:6]
    read = {"size": size, "place": place, "bands": raster.bands, "nodata": raster.nodata, "stretch": stretch}
    if (scene, None) not in log.lines:
        log.add([{"scene": scene, "read": read}])
    before = log.lines[scene, None]["read"]
    log.refuse_other(*({f"{raster.name}, {name}": one[name] for name in one} for one in (before, read)))


@dataclass(frozen=True)
class TileDescriber:
    """Describes the tiles of one raster after the other; memory grows with the batch size, not with the raster."""

    predictor: "Predictor"
    instruction: str
    log: KeyedLog
    batch_size: int = 8
    progress: Progress = no_progress
    on_tile: "Callable[[Raster, Tile], None] | None" = None

    def describe(self, raster: "Raster", grid: Grid) -> list[Tile]:
        """Describe every tile that is not mostly without data, and give them in the grid's order.

        Raises:
            RSMoEError: the raster is damaged, or no tile has any data.
        """
        message, num_tiles, scene = f"describing {raster.name}", len(grid), name_in_log(raster)
        keys = [(scene, number) for number in range(num_tiles)]
        num_done = sum(key in self.log.lines for key in keys)
        self.progress(message, num_done, num_tiles, "tiles")
        min_valid = MIN_VALID
        while True:
            for batch in self._batches(raster, grid, scene, min_valid):
                num_done += sum((scene, number) not in self.log.lines for number, _, _ in batch)
                self._describe_batch(batch, scene, min_valid)
                for number, window, _ in batch:
                    line = self.log.lines[scene, number]
                    if self.on_tile is not None and "text" in line:
                        self.on_tile(raster, _tile(number, window, line))
                self.progress(message, num_done, num_tiles, "tiles")
            best = max(self.log.lines[key]["valid"] for key in keys)
            if best >= min_valid or best == 0:
                break
            min_valid = best / 2
        lines = [(number, window, self.log.lines[scene, number]) for number, window in enumerate(grid)]
        tiles = [_tile(*line) for line in lines if "text" in line[-1]]
        if not tiles:
            raise no_data(raster.name)
        return tiles

    def _batches(
        self, raster: "Raster", grid: Grid, scene: str, min_valid: float
    ) -> "Iterator[list[tuple[int, Window, RasterImage]]]":
        """Tiles that are not done, until `batch_size` of them have data; read no larger than the model can use."""
        batch: list[tuple[int, Window, RasterImage]] = []
        num_valid = 0
        for number, window in enumerate(grid):
            line = self.log.lines.get((scene, number))
            if line is not None and ("text" in line or line["valid"] < min_valid):
                continue
            tile = raster.read(window, read_side(max(window.width, window.height), self.predictor.image_side))
            batch.append((number, window, tile))
            num_valid += round(tile.valid_share, 4) >= min_valid
            # Many empty tiles are logged now and then.
            if num_valid == self.batch_size or len(batch) == 8 * self.batch_size:
                yield batch
                batch, num_valid = [], 0
        if batch:
            yield batch

    def _describe_batch(
        self, batch: "Sequence[tuple[int, Window, RasterImage]]", scene: str, min_valid: float
    ) -> None:
        lines: list[dict[str, Any]] = []
        images, described = [], []
        for number, _, tile in batch:
            lines.append({"scene": scene, "tile": number, "valid": round(tile.valid_share, 4)})
            if lines[-1]["valid"] >= min_valid:
                images.append(tile.image)
                described.append(lines[-1])
        predictions = self.predictor.predict(images, self.instruction) if images else []
        for line, prediction in zip(described, predictions, strict=True):
            line |= prediction.record()
            if "reranker" in prediction.scores:
                line["score"] = round(prediction.scores["reranker"], 4)
        self.log.add(lines)


def _tile(number: int, window: Window, line: Mapping[str, Any]) -> Tile:
    """A described tile from its line in the log."""
    texts = (line["text"], line.get("router_prompts", {}), line.get("expert_texts", {}))
    confidences = line.get("confidence"), line.get("expert_confidences", {})
    return Tile(number, window, line["valid"], *texts, line.get("score"), line.get("sentences", ()), *confidences)


def read_side(side: int, image_side: int) -> int:
    """How large a tile is read: halved, as overviews are, as long as it stays twice as large as the model's image."""
    while side >= 4 * image_side:
        side = -(-side // 2)
    return side
