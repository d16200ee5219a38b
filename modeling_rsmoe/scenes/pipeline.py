"""From rasters to described scenes: open, cut, describe, put together, write. The command line only calls this."""

import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors_rsmoe import RSMoEError
from ..inference.checkpoint import revision_of
from ..prompting_rsmoe import DEFAULT_INSTRUCTION, question_instruction
from ..utils.files import only_writer
from ..utils.progress import Progress, no_progress
from ..utils.rasters.raster import Raster, open_raster
from .answers import combine
from .describe import Tile, TileDescriber, check_scene, tile_log
from .files import is_stac
from .grid import OVERLAP, TILE, Grid
from .outputs import check_format, write
from .result import SceneResult, SceneTask
from .stac import Scene, find_scenes
from .summary import summarize


if TYPE_CHECKING:
    from ..inference import Predictor


def describe_scene(
    scene: str | os.PathLike | Raster,
    predictor: "Predictor",
    instruction: str = DEFAULT_INSTRUCTION,
    question: str | None = None,
    tile: int = TILE,
    overlap: int = OVERLAP,
    bands: Sequence[int | str] | None = None,
    output: str | os.PathLike | None = None,
    batch_size: int = 8,
    progress: Progress = no_progress,
    nodata: float | None = None,
) -> SceneResult:
    """Caption a scene tile by tile and as a whole, or ask it a question.

    ```python
    checkpoint = load("rs-moe-nano")
    result = describe_scene("scene.tif", Predictor(checkpoint.model, checkpoint.processor), tile=512)
    result.text  # of the whole
    result.tiles[0].window, result.tiles[0].text
    result.geojson()  # for ipyleaflet, leafmap, folium and geopandas
    ```

    Args:
        scene: a GeoTIFF or whatever else `open_raster` reads, a STAC item, or an open raster.
        predictor: of the checkpoint; how texts are generated are its settings.
        instruction: for every tile.
        question: in place of the instruction: every tile is asked, and the answers become one (`answers`).
        tile: the side of a tile in pixels.
        overlap: of neighboring tiles, in pixels.
        bands: as of `open_raster`, for a path.
        output: a file to write, whose ending names the format (`outputs`); a file that exists is replaced. A stopped
            run of the same output and settings continues.
        batch_size: tiles that are described together; memory grows with it, not with the scene.
        progress: told how many tiles are done.
        nodata: as of `open_raster`, for a path.

    Returns:
        A `SceneResult`: its `text`, its `tiles`, the whole as JSON by `record()`, the tiles by `geojson()`.

    Raises:
        RSMoEError: the raster cannot be read or has no data, sizes that cannot be, a special token in the instruction,
            an unknown ending of the output, an unfinished run beside it has other settings, or another process is
            writing it.
        OSError: the output cannot be written.
    """
    if isinstance(scene, Raster):
        rasters = [scene]
    else:
        rasters = open_scenes([os.fspath(scene)], tile, overlap, bands, nodata=nodata)
    if len(rasters) != 1:
        raise RSMoEError(f"{scene} has {len(rasters)} scenes: give them to describe_scenes, by open_scenes")
    if question is not None:
        instruction = question_instruction(question)
    task = SceneTask(instruction, question, *model_and_revision(predictor))
    path = None if output is None else Path(output)
    return describe_scenes(rasters, predictor, task, tile, overlap, path, batch_size, progress)[0]


def describe_scenes(
    rasters: Sequence[Raster],
    predictor: "Predictor",
    task: SceneTask,
    tile: int = TILE,
    overlap: int = OVERLAP,
    output: Path | None = None,
    batch_size: int = 8,
    progress: Progress = no_progress,
    problems: list[str] | None = None,
    on_tile: Callable[[Raster, Tile], None] | None = None,
    save: Callable[[Sequence[SceneResult], Path], None] | None = None,
) -> list[SceneResult]:
    """Describe several scenes, of `open_scenes`, into one output; all else is as of `describe_scene`.

    A raster is closed when it is done, and opens again when it is read. Where the output cannot be written, finished
    tiles are kept (`describe.log_path`).

    Args:
        problems: where a scene that cannot be described is told, in one line; the others are described and written,
            and finished tiles are kept. By default the first such scene ends the run.
        on_tile: called with each tile when it is described; not with those of a run that was stopped.
        save: what writes the results to the output; by default `outputs.write`.

    Raises:
        RSMoEError: as of `describe_scene`; with `problems` only if no scene can be described.
    """
    if output is not None:
        check_format(output)
    predictor.processor.refuse_special_tokens(task.instruction)
    results = []
    with nullcontext() if output is None else only_writer(output):
        log = tile_log(output, _settings(predictor, task, tile, overlap))
        for raster in rasters:
            check_scene(log, raster)
        describer = TileDescriber(predictor, task.instruction, log, batch_size, progress, on_tile)
        for raster in rasters:
            try:
                grid = Grid(raster.width, raster.height, tile, overlap)
                results.append(_describe(raster, describer, grid, task))
            except RSMoEError as error:
                if problems is None:
                    raise
                problems.append(str(error))
            finally:
                raster.close()
        if problems and not results:
            raise RSMoEError("\n".join(problems))
        if output is not None:
            progress(f"writing {output}")
            (save or write)(results, output)
            if not problems:
                log.remove()
    return results


def _describe(raster: Raster, describer: TileDescriber, grid: Grid, task: SceneTask) -> SceneResult:
    tiles = describer.describe(raster, grid)
    if task.question is None:
        describer.progress(f"summarizing {raster.name}")
        outcome: Any = summarize(tiles, raster, describer.predictor, task.instruction)
    else:
        shares = list(grid.area_shares())
        sure = [one for one in tiles if not one.is_withheld]
        outcome = combine(task.question, [one.text for one in sure], [shares[one.number] for one in sure])
    return SceneResult(task, raster, grid, tiles, outcome)


def open_scenes(
    paths: Sequence[str],
    tile: int = TILE,
    overlap: int = OVERLAP,
    bands: Sequence[int | str] | None = None,
    asset: str | None = None,
    remote: bool = False,
    nodata: float | None = None,
    problems: list[str] | None = None,
) -> list[Raster]:
    """Open and check every raster, those of STAC items too, before a model is loaded; they are closed again.

    Args:
        paths: of rasters and STAC documents.
        tile: the side of a tile in pixels, to check that the raster can be cut so.
        overlap: of neighboring tiles, in pixels.
        bands: as of `open_raster`; of STAC items also names of assets.
        asset: the asset to take from every STAC item.
        remote: whether local STAC items and rasters may name files on a network.
        nodata: as of `open_raster`.
        problems: where a bad one is told, in one line, beside good ones. By default it ends the run.

    Raises:
        RSMoEError: with a line for each bad one; with `problems` only if there is no good one.
    """
    rasters: list[Raster] = []
    told: list[str] = []
    for path in paths:
        try:
            is_item = is_stac(path)
            scenes = find_scenes(path, bands, asset, remote) if is_item else [Scene(path, (path,), bands)]
            for scene in scenes:
                with open_raster(scene.paths, scene.bands, scene.name, remote, nodata) as raster:
                    Grid(raster.width, raster.height, tile, overlap)
                    rasters.append(raster)
        except RSMoEError as error:
            told.append(str(error))
    if told and (problems is None or not rasters):
        raise RSMoEError("\n".join(told))
    if problems is not None:
        problems += told
    return rasters


def model_and_revision(predictor: "Predictor") -> tuple[str, str]:
    """The checkpoint's name and revision, as far as its model knows them."""
    name = predictor.model.name_or_path or ""
    if name and Path(name).is_dir():
        return name, revision_of(Path(name))
    return name, getattr(predictor.model.config, "_commit_hash", None) or ""


def _settings(predictor: "Predictor", task: SceneTask, tile: int, overlap: int) -> dict[str, Any]:
    """All that a tile's text depends on, beside its scene."""
    task_settings = {task.kind: task.user_text, "model": task.model, "revision": task.revision}
    generation = {"system": predictor.system, **predictor.generation}
    if predictor.min_confidence is not None:
        generation["min_confidence"] = predictor.min_confidence
    return {"tile": tile, "overlap": overlap, **task_settings, **generation}
