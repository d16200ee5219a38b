"""What `caption` and `ask` share about scenes: their options, and how results are shown.

[our decision] An input is a scene, cut into tiles, if an option of scenes is given (`--tile`, `--overlap`, `--bands`,
`--nodata`, `--asset`, `--output`), or by itself (`scenes.files.is_scene`).
"""

import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.panel import Panel
from rich.text import Text

from ..scenes.files import is_scene
from ..scenes.grid import OVERLAP, TILE, check_tile
from ..scenes.result import SceneResult, SceneTask
from ..scenes.summary import Summary
from ..utils.files import check_outputs, disk_errors
from ..utils.quiet import quiet_libraries
from ..utils.rasters.bands import parse_bands
from . import change, terminal


if TYPE_CHECKING:
    from ..collection.scenes import Cut
    from ..inference import Predictor
    from ..scenes.describe import Tile
    from ..scenes.outputs import Result
    from ..utils.rasters.raster import Raster

LEFT_OUT = 1  # exit code: a scene of several could not be described

TileOption = Annotated[
    int | None,
    typer.Option(metavar="PX", help="Cut the scene into tiles of this side.", show_default="512, for scenes"),
]
OverlapOption = Annotated[
    int | None, typer.Option(metavar="PX", help="How far neighboring tiles overlap.", show_default="0")
]
BandsOption = Annotated[
    str | None,
    typer.Option(
        metavar="BANDS",
        help="One band, three as red,green,blue, or a radar's two, by number or name: 4,3,2.",
        show_default="red, green and blue",
    ),
]
NodataOption = Annotated[
    float | None,
    typer.Option(
        metavar="VALUE",
        help="A value that is no data, beside what the file declares; nan: none.",
        show_default="what looks like one",
    ),
]
AssetOption = Annotated[
    str | None, typer.Option(metavar="NAME", help="The asset of STAC items.", show_default="visual")
]
RemoteOption = Annotated[bool, typer.Option("--remote", help="Let local STAC items and .vrt name files on a network.")]
OutputOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Write every tile's text and place: .geojson, .gpkg, .parquet or .jsonl. A stopped run goes on.",
        show_default=False,
    ),
]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace output files.")]
ChangeOption = Annotated[
    bool,
    typer.Option(
        "--change",
        help="Two scenes of one place, the earlier first: describe both dates and compare the descriptions.",
    ),
]


@dataclass(frozen=True)
class SceneOptions:
    """The options of scenes, as the user gave them; None is the default."""

    tile: int | None = None
    overlap: int | None = None
    bands: str | None = None
    asset: str | None = None
    remote: bool = False
    output: Path | None = None
    overwrite: bool = False
    change: bool = False
    nodata: float | None = None

    @property
    def is_given(self) -> bool:
        """Whether any of them makes every input a scene."""
        return self.cuts or self.output is not None

    @property
    def cuts(self) -> bool:
        """Whether any of them says how a scene is read."""
        return self.is_of_scenes or self.bands is not None or self.nodata is not None

    @property
    def is_of_scenes(self) -> bool:
        """Whether any of them says what folders of images do not know."""
        return self.change or any(option is not None for option in (self.tile, self.overlap, self.asset))

    @property
    def parsed_bands(self) -> tuple[int | str, ...] | None:
        """The bands by number or name; None leaves the choice to the scene."""
        return None if self.bands is None else parse_bands(self.bands)

    def check(self) -> None:
        """Refuse what can be refused before an input is read."""
        check_tile(*self.sizes())
        if self.output is not None:
            from ..scenes.outputs import check_format

            check_format(self.output)
            check_outputs(self.output, overwrite=self.overwrite)

    def cut(self) -> "Cut":
        """How the scenes of a collection are read and cut."""
        from ..collection.scenes import Cut

        return Cut(*self.sizes(), self.parsed_bands, self.asset, self.nodata)

    def sizes(self) -> tuple[int, int]:
        """Tile and overlap, in pixels."""
        tile = TILE if self.tile is None else self.tile
        return tile, OVERLAP if self.overlap is None else self.overlap


def split(images: Sequence[str], scene_options: SceneOptions) -> tuple[list[str], list[str]]:
    """The inputs that are images, and those that are scenes."""
    if scene_options.is_given:
        return [], list(images)
    scenes = [image for image in images if is_scene(image)]
    return [image for image in images if image not in scenes], scenes


def open_rasters(
    paths: Sequence[str], scene_options: SceneOptions, steps: terminal.Steps, problems: list[str]
) -> "list[Raster]":
    """Open and check every raster before a model is loaded, and print what the user should know about it. Of a bad one
    beside good ones `problems` gets a line."""
    if not paths:
        return []
    from ..scenes.pipeline import open_scenes

    steps(f"opening {terminal.count_of(len(paths), 'scene')}")
    bands, asset, remote = scene_options.parsed_bands, scene_options.asset, scene_options.remote
    sizes, nodata = scene_options.sizes(), scene_options.nodata
    left_out = None if scene_options.change else problems  # of two dates both are needed
    rasters = open_scenes(paths, *sizes, bands, asset, remote, nodata, left_out)
    for problem in problems:
        steps.note(f"left out: {problem}")
    if scene_options.change:
        rasters = change.align(rasters, steps)
    for raster in rasters:
        for note in raster.notes:
            steps.note(note)
    return rasters


def describe(
    rasters: "Sequence[Raster]",
    predictor: "Predictor",
    task: SceneTask,
    scene_options: SceneOptions,
    batch_size: int,
    as_json: bool,
    steps: terminal.Steps,
    problems: list[str],
) -> "list[Result]":
    """Describe every tile of every raster, and write `--output`; without it, print each tile's JSON as it comes.

    `problems` gets a line for each raster left out.

    Returns:
        The scenes, or the two dates as one.
    """
    from ..scenes.describe import log_path
    from ..scenes.outputs import record_tile
    from ..scenes.pipeline import describe_scenes

    def print_tile(raster: "Raster", tile: "Tile") -> None:
        if as_json and output is None:
            steps.print(json.dumps(record_tile(task, raster, tile)))

    output = scene_options.output
    log = None if output is None else log_path(output)
    remedy = f"Finished tiles are kept in {log}: free some space and run the same command to go on."
    try:
        # Without an output, what cannot be written is stdout: no remedy of ours.
        with disk_errors("cannot write", remedy) if output is not None else nullcontext(), quiet_libraries():
            settings = (predictor, task, *scene_options.sizes(), output, batch_size, steps)
            if scene_options.change:
                return [change.describe(rasters, *settings)]
            return [*describe_scenes(rasters, *settings, problems, print_tile)]
    except KeyboardInterrupt:
        if log is not None and log.exists():
            steps.note(f"finished tiles are kept in {log}: the same command goes on from there")
        raise


def report(problems: Sequence[str], scene_options: SceneOptions) -> None:
    """A line for each scene that was left out, and exit code 1: the others are described."""
    if problems:
        terminal.print_error("\n".join(problems))
        if scene_options.output is not None:
            remedy = "mend the scene and run the same command with --overwrite: it goes on from there"
            terminal.print_error(f"finished tiles are kept. To complete the output, {remedy}", label="note")
        raise typer.Exit(LEFT_OUT)


def show(results: "Sequence[Result]", output: Path | None, as_json: bool, steps: terminal.Steps) -> None:
    """Each scene on stdout: a JSON object (for two dates without `--output` after one for each tile), or a panel."""
    from ..scenes.outputs import tile_record

    for result in results:
        if as_json:
            if output is None and not isinstance(result, SceneResult):
                for tile in result.tiles:
                    steps.print(json.dumps(tile_record(result, tile)))
            steps.print(json.dumps(result.record()))
        else:
            steps.print(_panel(result, output is None) if isinstance(result, SceneResult) else change.panel(result))
    if output is not None and not as_json:
        tiles = terminal.count_of(sum(len(result.tiles) for result in results), "tile")
        num_skipped = sum(result.num_skipped for result in results)
        steps.print(terminal.printable(f"{output} ({tiles}, {num_skipped} skipped as mostly no data)"))


def _panel(result: SceneResult, with_tiles: bool) -> Panel:
    rows: list[tuple[Text, ...]] = []
    if with_tiles:
        for tile in result.tiles[: terminal.MAX_SHOWN_TILES]:
            rows.append(
                (Text(f"tile {tile.number}", "dim"), terminal.rated(terminal.shown(tile.text), tile.confidence))
            )
        rows += terminal.more_tiles(len(result.tiles))
        rows.append(())
    counts = f"{len(result.tiles)} of {result.grid.tile} px"
    if result.num_skipped:
        counts += f", {result.num_skipped} skipped as mostly no data"
    tiles = (Text("tiles", "cyan"), Text(counts))
    if isinstance(result.outcome, Summary):
        shares = ", ".join(f"{noun} {share:.0%}" for noun, share in result.outcome.mentioned.items())
        shares = f"in captions of tiles: {shares}" if shares else "(no noun that is known)"
        rows += [(Text("mentioned", "cyan"), Text(shares)), tiles]
    else:
        question = (Text("question", "bold"), terminal.shown(result.task.user_text, "bold"))
        rows += [question, tiles, (Text("combined", "cyan"), Text(result.outcome.how))]
    rows.append((Text(result.task.kind, "bold"), terminal.shown(result.text, "bold")))
    return terminal.panel(rows, 2, result.raster.name, result.task.model)
