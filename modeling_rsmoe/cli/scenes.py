"""What `caption` and `ask` share about scenes: options, which inputs are scenes, opening, running and showing them.

[our decision] An input is a scene, cut into tiles, if an option of scenes is given (`--tile`, `--overlap`, `--bands`,
`--asset`, `--output`), or by itself: a STAC document, a path of GDAL's (`/vsi...`, `s3://...`), a `.vrt`, `.img` or
`.ntf`, or a TIFF that is no single picture: georeferenced and larger than a tile, of other than 1, 3 or 4 bands, or
over Pillow's limit of pixels. Everything else is an image, looked at as a whole.
"""

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from ..errors_rsmoe import RSMoEError
from ..inference.checkpoint import Checkpoint
from ..utils.files import check_outputs
from ..utils.quiet import quiet_libraries
from . import options, terminal


if TYPE_CHECKING:
    from ..scenes.describe import Describer, Tile
    from ..scenes.outputs import SceneResult
    from ..scenes.raster import Raster
    from ..scenes.summary import Summary
    from ..scenes.work import WorkFile

_SHOWN_TILES = 12
_RASTER_SUFFIXES = (".vrt", ".img", ".ntf")
_GEO_KEYS, _SAMPLES = 34735, 277  # TIFF tags
_WIDTH, _HEIGHT = 256, 257

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
        help="One band, or three as red,green,blue, by number or description: 4,3,2.",
        show_default="red, green and blue",
    ),
]
AssetOption = Annotated[
    str | None, typer.Option(metavar="NAME", help="The asset of STAC items.", show_default="visual")
]
RemoteOption = Annotated[bool, typer.Option("--remote", help="Let local STAC items name files on a network.")]
OutputOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Write every tile's text and place: .geojson, .gpkg, .parquet or .jsonl. A stopped run goes on.",
        show_default=False,
    ),
]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace output files.")]


@dataclass(frozen=True)
class SceneOptions:
    """The options of scenes, as given; None is the default."""

    tile: int | None = None
    overlap: int | None = None
    bands: str | None = None
    asset: str | None = None
    remote: bool = False
    output: Path | None = None
    overwrite: bool = False

    @property
    def given(self) -> bool:
        """Whether any of them makes every input a scene."""
        return self.cuts or self.output is not None

    @property
    def cuts(self) -> bool:
        """Whether any of them says how a scene is read."""
        return any(option is not None for option in (self.tile, self.overlap, self.bands, self.asset))

    def check(self) -> None:
        """
        Raises:
            RSMoEError: sizes that cannot be, bands that are none, an output of no known format or that exists.
        """
        from ..scenes.bands import parse_bands
        from ..scenes.grid import check_tile

        check_tile(*self.sizes())
        if self.bands is not None:
            parse_bands(self.bands)
        if self.output is not None:
            from ..scenes.outputs import check_format

            check_format(self.output)
            if self.output.exists() and not self.overwrite:
                raise RSMoEError(f"{self.output} exists: give another name, or --overwrite")
            check_outputs(self.output)

    def sizes(self) -> tuple[int, int]:
        """Tile and overlap, in pixels."""
        from ..scenes.grid import OVERLAP, TILE

        tile = TILE if self.tile is None else self.tile
        return tile, OVERLAP if self.overlap is None else self.overlap


@dataclass(frozen=True)
class Asked:
    """What is asked of every tile: an instruction for captions (`text` is the same), or a question."""

    kind: Literal["caption", "answer"]
    asked: str
    text: str  # as the model gets it


def split(images: Sequence[str], options: SceneOptions) -> tuple[list[str], list[str]]:
    """The inputs that are looked at as a whole, and those that are scenes."""
    if options.given:
        return [], list(images)
    scenes = [image for image in images if _is_scene(image)]
    return [image for image in images if image not in scenes], scenes


def _is_scene(image: str) -> bool:
    from ..scenes.files import is_gdal_path
    from ..scenes.stac import is_stac

    if image.startswith(("http://", "https://", "data:", "file://")):
        return is_stac(image) and image.startswith("http")
    suffix = Path(image).suffix.lower()
    return is_gdal_path(image) or is_stac(image) or suffix in _RASTER_SUFFIXES or _is_large_tiff(image)


def _is_large_tiff(path: str) -> bool:
    """By its tags: nothing is decoded, and a file that is no TIFF, or a broken one, is the image reader's to refuse."""
    from PIL import Image
    from PIL.TiffImagePlugin import ImageFileDirectory_v2

    from ..scenes.grid import TILE

    try:
        with open(path, "rb") as file:
            head = file.read(16)
            if head[:4] not in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
                return False
            tags = ImageFileDirectory_v2(head if 43 in head[2:4] else head[:8])
            file.seek(tags.next)
            tags.load(file)
        width, height, bands = int(tags[_WIDTH]), int(tags[_HEIGHT]), int(tags.get(_SAMPLES, 1))
        limit = Image.MAX_IMAGE_PIXELS or width * height
        placed = _GEO_KEYS in tags and max(width, height) > TILE
        return placed or bands not in (1, 3, 4) or width * height > limit
    except Exception:
        return False


def open_scenes(paths: Sequence[str], options: SceneOptions, steps: terminal.Steps) -> "list[Raster]":
    """Open and check every raster, those of STAC items too, before a model is loaded; they are closed again.

    Raises:
        RSMoEError: with a line for each bad one.
    """
    if not paths:
        return []
    from ..scenes.bands import parse_bands
    from ..scenes.grid import Grid
    from ..scenes.raster import open_raster
    from ..scenes.stac import Scene, find_scenes, is_stac

    bands = None if options.bands is None else parse_bands(options.bands)
    steps(f"opening {_count(len(paths))}")
    rasters, problems = [], []
    for path in paths:
        try:
            found = [Scene(path, (path,), bands)]
            if is_stac(path):
                found = find_scenes(path, bands, options.asset, options.remote)
            for scene in found:
                with open_raster(scene.paths, scene.bands, scene.name) as raster:
                    Grid(raster.width, raster.height, *options.sizes())
                    rasters.append(raster)
        except RSMoEError as error:
            problems.append(str(error))
    if problems:
        raise RSMoEError("\n".join(problems))
    for raster in rasters:
        for note in raster.notes:
            steps.note(note)
    return rasters


def run(
    rasters: "Sequence[Raster]",
    asked: Asked,
    options: SceneOptions,
    settings: options.Generation,
    loaded: Checkpoint,
    steps: terminal.Steps,
) -> "list[SceneResult]":
    """Describe every tile of every raster, and write `--output`.

    Raises:
        RSMoEError: a raster is damaged or without data, the output cannot be written, or an unfinished run beside it
            has other settings.
    """
    from ..scenes.describe import Describer
    from ..scenes.outputs import Run, write
    from ..scenes.work import WorkFile
    from ..utils.files import disk_errors

    loaded.processor.refuse_marks(asked.text)
    run = Run(asked.kind, asked.asked, loaded.name, loaded.revision())
    describer = Describer(loaded.model, loaded.processor, asked.text, settings.generation_arguments())
    work = WorkFile(options.output, _settings(rasters, run, options, settings))
    kept = f"The tiles so far are kept in {work.path}: free some space and run the same command to go on."
    results = []
    with _kept_on_interruption(work, steps), disk_errors("cannot write", kept), quiet_libraries():
        for number, raster in enumerate(rasters):
            results.append(_run_one(number, raster, run, describer, options, settings, work, steps))
            raster.close()
        if options.output is not None:
            steps(f"writing {options.output}")
            write(results, options.output)
            work.remove()
    return results


def _run_one(
    number: int,
    raster: "Raster",
    run: Any,
    describer: "Describer",
    options: SceneOptions,
    settings: options.Generation,
    work: "WorkFile",
    steps: terminal.Steps,
) -> "SceneResult":
    from ..scenes.answers import combine
    from ..scenes.describe import describe
    from ..scenes.grid import Grid
    from ..scenes.outputs import SceneResult
    from ..scenes.summary import summarize

    grid = Grid(raster.width, raster.height, *options.sizes())
    progress = _Rate(f"looking at {raster.name}", steps)
    tiles = describe(raster, grid, describer, work, number, settings.batch_size, progress)
    if run.kind == "caption":
        steps(f"summing up {raster.name}")
        return SceneResult(run, raster, grid, tiles, summarize(tiles, raster, describer))
    shares = list(grid.own_shares())
    combined = combine(run.asked, [tile.text for tile in tiles], [shares[tile.number] for tile in tiles])
    return SceneResult(run, raster, grid, tiles, combined)


class _Rate:
    """Progress over tiles, with how many this run does in a second."""

    def __init__(self, message: str, steps: terminal.Steps):
        self.message, self.steps = message, steps
        self.began: tuple[float, int] | None = None

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        self.began = self.began or (now, done)
        seconds, new = now - self.began[0], done - self.began[1]
        rate = f", {new / seconds:.2f} tiles/s" if new and seconds else ""
        self.steps(self.message, done / total, f"{done} of {total} tiles{rate}")


def _settings(
    rasters: "Sequence[Raster]", run: Any, options: SceneOptions, settings: options.Generation
) -> dict[str, Any]:
    """All that a tile's text depends on."""
    tile, overlap = options.sizes()
    scenes = [
        {
            "paths": raster.paths,
            "size": [raster.width, raster.height],
            "bands": list(raster.bands),
            "stretch": None if raster.stretch is None else [list(raster.stretch.low), list(raster.stretch.high)],
        }
        for raster in rasters
    ]
    own = {"tile": tile, "overlap": overlap, run.kind: run.asked, "model": run.model, "revision": run.revision}
    return {**own, **settings.generation_arguments(), "scenes": scenes}


@contextmanager
def _kept_on_interruption(work: "WorkFile", steps: terminal.Steps) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        if work.path is not None and work.lines:
            steps.note(f"{len(work.lines)} tiles are kept in {work.path}: the same command goes on from there")
        raise


def show(results: "Sequence[SceneResult]", output: Path | None, as_json: bool, steps: terminal.Steps) -> None:
    """Each scene on stdout: a JSON object (without `--output` after one for each tile), or a panel."""
    from ..scenes.outputs import line

    for result in results:
        if as_json:
            for tile in result.tiles if output is None else ():
                steps.print(json.dumps(line(result, tile)))
            steps.print(json.dumps(result.record()))
        else:
            steps.print(_panel(result, output is None))
    if output is not None and not as_json:
        tiles, skipped = (sum(counts) for counts in zip(*((len(each.tiles), each.skipped) for each in results)))
        steps.print(terminal.printable(f"{output} ({_count(tiles, 'tile')}, {skipped} skipped as mostly no data)"))


def _panel(result: "SceneResult", with_tiles: bool) -> Panel:
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    kind = result.run.kind
    if with_tiles:
        for tile in result.tiles[:_SHOWN_TILES]:
            table.add_row(Text(_place(tile), "dim"), Text(terminal.printable(tile.text) or "(nothing)"))
        if len(result.tiles) > _SHOWN_TILES:
            rest = len(result.tiles) - _SHOWN_TILES
            table.add_row(Text("...", "dim"), Text(f"{_count(rest, 'more tile')}: --output keeps them all", "dim"))
        table.add_row()
    if kind == "caption":
        summary: Summary = result.outcome  # type: ignore[assignment]
        shares = ", ".join(f"{noun} {share:.0%}" for noun, share in summary.mentioned.items())
        table.add_row(Text("mentioned", "cyan"), Text(shares or "(no noun that is known)"))
    else:
        table.add_row(Text("question", "bold"), Text(terminal.printable(result.run.asked), "bold"))
    counts = f"{len(result.tiles)} of {result.grid.tile} px" + (
        f", {result.skipped} skipped as mostly no data" if result.skipped else ""
    )
    table.add_row(Text("tiles", "cyan"), Text(counts))
    if kind == "answer":
        table.add_row(Text("combined", "cyan"), Text(result.outcome.how))  # type: ignore[union-attr]
    table.add_row(Text(kind, "bold"), Text(terminal.printable(result.text) or "(nothing)", "bold"))
    name = Text(terminal.printable(result.raster.name))
    return Panel(table, title=name, title_align="left", subtitle=Text(result.run.model), subtitle_align="right")


def _place(tile: "Tile") -> str:
    return f"{tile.window.column},{tile.window.row}"


def _count(number: int, what: str = "scene") -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
