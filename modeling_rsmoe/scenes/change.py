"""Two dates of one place: each described tile by tile as a scene is, and their descriptions compared.

No model of change: what differs is found in the texts alone (`change_words`), on one grid (`change_align`).
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors_rsmoe import RSMoEError
from ..prompting_rsmoe import DEFAULT_INSTRUCTION
from ..utils.progress import Progress, no_progress
from ..utils.rasters.raster import Raster
from .change_align import AlignedRaster, align
from .change_result import ChangeResult
from .grid import OVERLAP, TILE
from .outputs import write
from .pipeline import describe_scenes, model_and_revision, open_scenes
from .result import SceneResult, SceneTask


if TYPE_CHECKING:
    from ..inference import Predictor


def describe_change(
    before: str | os.PathLike | Raster,
    after: str | os.PathLike | Raster,
    predictor: "Predictor",
    instruction: str = DEFAULT_INSTRUCTION,
    tile: int = TILE,
    overlap: int = OVERLAP,
    bands: Sequence[int | str] | None = None,
    output: str | os.PathLike | None = None,
    batch_size: int = 8,
    progress: Progress = no_progress,
    nodata: float | None = None,
) -> ChangeResult:
    """Caption a place on two dates, tile by tile and as a whole, and compare what the texts name.

    The dates are aligned by their georeference (`change_align`). Two descriptions are compared: that is no change
    model, and they also differ where nothing has changed (docs/how-to/scenes.md has figures).

    Args:
        before: the earlier date: what `describe_scene` takes, of one scene.
        after: the later date.
        predictor: of the checkpoint.
        instruction: for every tile.
        tile: the side of a tile, in pixels of the common grid.
        overlap: of neighboring tiles, in pixels.
        bands: of both dates; as of `open_raster`, for paths.
        output: as of `describe_scene`; a stopped run of the same output and settings continues.
        batch_size: tiles that are described together.
        progress: told how many tiles are done.
        nodata: of both dates; as of `open_raster`, for paths.

    Returns:
        A `ChangeResult`: its `text`, its `tiles` with their differences, both dates, and all as JSON by `record()`.

    Raises:
        RSMoEError: as of `describe_scene`; or a date is not placed on the earth, or they do not overlap.
        OSError: the output cannot be written.
    """
    rasters: list[Raster] = []
    for date in (before, after):
        if isinstance(date, Raster):
            rasters.append(date)
        else:
            rasters += open_scenes([os.fspath(date)], tile, overlap, bands, nodata=nodata)
    task = SceneTask(instruction, None, *model_and_revision(predictor))
    path = None if output is None else Path(output)
    return describe_pair(align_two(rasters), predictor, task, tile, overlap, path, batch_size, progress)


def align_two(rasters: Sequence[Raster]) -> tuple[AlignedRaster, AlignedRaster]:
    """Align the rasters of two dates, the earlier one first; more or fewer are refused."""
    if len(rasters) != 2:
        raise RSMoEError(
            f"a change is told of two scenes, the earlier one first, not of {len(rasters)}: give two; of more dates "
            "compare two at a time"
        )
    return align(*rasters)


def describe_pair(
    pair: tuple[AlignedRaster, AlignedRaster],
    predictor: "Predictor",
    task: SceneTask,
    tile: int = TILE,
    overlap: int = OVERLAP,
    output: Path | None = None,
    batch_size: int = 8,
    progress: Progress = no_progress,
) -> ChangeResult:
    """Describe two dates that are aligned; all else is as of `describe_change`."""

    def save(results: Sequence[SceneResult], file: Path) -> None:
        write([ChangeResult(*results)], file)

    return ChangeResult(
        *describe_scenes(pair, predictor, task, tile, overlap, output, batch_size, progress, save=save)
    )
