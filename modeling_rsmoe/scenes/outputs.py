"""What was said about scenes, as a file: GeoJSON, GeoPackage, GeoParquet or JSON lines, by the name's ending.

Every format holds one feature for each described tile, and a record of each scene (its caption or answer, its grid,
counts, settings): GeoJSON under the member `rsmoe`, GeoPackage as the layer `scenes`, Parquet in the schema's metadata
under `rsmoe`, JSON lines as lines without `tile` after the tiles.

[our decision] GeoJSON and JSON lines hold footprints in WGS84 (null for a raster that is not placed on the earth).
GeoPackage and Parquet hold exact outlines in the rasters' own coordinate system, if all scenes share one, else WGS84.
"""

import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..errors_rsmoe import RSMoEError
from ..utils.extras import require
from ..utils.files import whole_file
from .answers import Combined
from .footprint import footprint, outline
from .grid import Grid, Window
from .raster import EXTRA
from .summary import Summary


if TYPE_CHECKING:
    from .describe import Tile
    from .raster import Raster

METADATA = "rsmoe"  # what the scenes' records are called in GeoJSON and Parquet
TILES, SCENES = "tiles", "scenes"  # layers of a GeoPackage


@dataclass(frozen=True)
class Run:
    """What was asked of whom.

    Attributes:
        kind: what the texts are.
        asked: the instruction, or the question.
        model, revision: the checkpoint's name, and the commit on the Hub or the hash of its folder.
    """

    kind: Literal["caption", "answer"]
    asked: str
    model: str
    revision: str


@dataclass(frozen=True)
class SceneResult:
    """All that was found in one scene; `outcome` is a Summary of captions or the combined answer."""

    run: Run
    raster: "Raster"
    grid: Grid
    tiles: "Sequence[Tile]"
    outcome: Summary | Combined

    @property
    def text(self) -> str:
        """The scene's caption or answer."""
        return self.outcome.caption if isinstance(self.outcome, Summary) else self.outcome.answer

    @property
    def skipped(self) -> int:
        """Tiles that are mostly without data."""
        return len(self.grid) - len(self.tiles)

    def record(self) -> dict[str, Any]:
        """The scene as plain JSON."""
        raster, stretch = self.raster, self.raster.stretch
        found: dict[str, Any] = {"scene": raster.name, self.run.kind: self.text}
        if isinstance(self.outcome, Summary):
            found |= {"parts": self.outcome.parts, "mentioned": self.outcome.mentioned, "instruction": self.run.asked}
        else:
            found |= {"how": self.outcome.how, "question": self.run.asked}
        found |= {"tiles": len(self.tiles), "skipped": self.skipped}
        found |= {"tile_size": self.grid.tile, "overlap": self.grid.overlap}
        found |= {"width": raster.width, "height": raster.height, "bands": list(raster.bands)}
        found |= {"stretch": None if stretch is None else {"low": list(stretch.low), "high": list(stretch.high)}}
        found |= {"crs": None if raster.crs is None else raster.crs.to_string(), "notes": raster.notes}
        return found | {"model": self.run.model, "revision": self.run.revision}


def check_format(output: Path) -> None:
    """
    Raises:
        RSMoEError: the name ends in none of the formats', or a package that writes it is missing.
    """
    if output.suffix.lower() not in _WRITERS:
        raise RSMoEError(f"{output} ends in none of {', '.join(_WRITERS)}: give --output the format that you want")
    for module in _NEEDS.get(output.suffix.lower(), ()):
        require(module, EXTRA)


def write(results: Sequence[SceneResult], output: Path) -> None:
    """Write a file whole or not at all.

    Args:
        output: its ending names the format (`check_format`).

    Raises:
        RSMoEError: the format's library cannot write it. OSError: the disk is full, for example.
    """
    with whole_file(output) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a layer without a coordinate system: its raster has none
        try:
            _WRITERS[output.suffix.lower()](results, file)
        except RuntimeError as error:  # pyogrio's errors
            raise RSMoEError(
                f"{output} cannot be written ({error}): free some space, or give another place"
            ) from error


def properties(result: SceneResult, tile: "Tile") -> dict[str, Any]:
    """A tile's columns, flat, as GIS programs show them."""
    columns = {
        "scene": result.raster.name,
        "tile": tile.number,
        result.run.kind: tile.text,
        **{f"part_{name}": text for name, text in tile.parts.items()},
        **{f"prompt_{name}": text for name, text in tile.router_prompts.items()},
        "column": tile.window.column,
        "row": tile.window.row,
        "width": tile.window.width,
        "height": tile.window.height,
        "valid": tile.valid,
        "model": result.run.model,
        "revision": result.run.revision,
    }
    # a NUL would end the text in a database
    return {
        name: value.replace("\0", "\ufffd") if isinstance(value, str) else value for name, value in columns.items()
    }


def line(result: SceneResult, tile: "Tile") -> dict[str, Any]:
    """A tile as `rsmoe caption --json` shows an image, with its place."""
    return {
        "scene": result.raster.name,
        "tile": tile.number,
        "window": list(tile.window),
        "valid": tile.valid,
        result.run.kind: tile.text,
        "router_prompts": tile.router_prompts,
        "parts": tile.parts,
        "model": result.run.model,
        "revision": result.run.revision,
        "geometry": footprint(result.raster, tile.window),
    }


def _each(results: Sequence[SceneResult]) -> "Iterator[tuple[SceneResult, Tile]]":
    for result in results:
        for tile in result.tiles:
            yield result, tile


def _write_lines(results: Sequence[SceneResult], file: Path) -> None:
    with file.open("w", encoding="utf-8") as stream:
        for result, tile in _each(results):
            stream.write(json.dumps(line(result, tile), ensure_ascii=False) + "\n")
        for result in results:
            stream.write(json.dumps(result.record(), ensure_ascii=False) + "\n")


def _write_geojson(results: Sequence[SceneResult], file: Path) -> None:
    with file.open("w", encoding="utf-8") as stream:
        scenes = json.dumps({SCENES: [result.record() for result in results]}, ensure_ascii=False)
        stream.write(f'{{"type": "FeatureCollection", "{METADATA}": {scenes}, "features": [')
        for index, (result, tile) in enumerate(_each(results)):
            feature = {
                "type": "Feature",
                "geometry": footprint(result.raster, tile.window),
                "properties": properties(result, tile),
            }
            stream.write((",\n" if index else "\n") + json.dumps(feature, ensure_ascii=False))
        stream.write("\n]}\n")


def _write_geopackage(results: Sequence[SceneResult], file: Path) -> None:
    tiles = _frame(results, [properties(result, tile) for result, tile in _each(results)], _windows(results))
    scenes = [
        {
            name: value if isinstance(value, (str, int)) else json.dumps(value)
            for name, value in result.record().items()
        }
        for result in results
    ]
    whole = [(result, Window(0, 0, result.raster.width, result.raster.height)) for result in results]
    tiles.to_file(file, layer=TILES, driver="GPKG", engine="pyogrio")
    _frame(results, scenes, whole).to_file(file, layer=SCENES, driver="GPKG", engine="pyogrio")


def _write_parquet(results: Sequence[SceneResult], file: Path) -> None:
    parquet = require("pyarrow.parquet", EXTRA)
    _frame(results, [properties(result, tile) for result, tile in _each(results)], _windows(results)).to_parquet(file)
    table = parquet.read_table(file)
    scenes = json.dumps({SCENES: [result.record() for result in results]}, ensure_ascii=False)
    parquet.write_table(table.replace_schema_metadata({**table.schema.metadata, METADATA: scenes}), file)


def _windows(results: Sequence[SceneResult]) -> list[tuple[SceneResult, Window]]:
    return [(result, tile.window) for result, tile in _each(results)]


def _frame(
    results: Sequence[SceneResult], rows: list[dict[str, Any]], windows: Sequence[tuple[SceneResult, Window]]
) -> Any:
    """A GeoDataFrame of rows and the windows' outlines."""
    geopandas, shapely = require("geopandas", EXTRA), require("shapely.geometry", EXTRA)
    rasters = [result.raster for result in results]
    systems = {raster.crs.to_wkt() if raster.crs is not None else None for raster in rasters}
    one_system = len(systems) == 1 and len({raster.transform is None for raster in rasters}) == 1
    if one_system:
        system = rasters[0].crs if rasters[0].transform is not None else None
        shapes = [outline(result.raster, window) for result, window in windows]
    else:
        system = "EPSG:4326"
        places = [footprint(result.raster, window) for result, window in windows]
        shapes = [None if place is None else shapely.shape(place) for place in places]
    return geopandas.GeoDataFrame(rows, geometry=shapes, crs=system)


_WRITERS: dict[str, Callable[[Sequence[SceneResult], Path], None]] = {
    ".geojson": _write_geojson,
    ".gpkg": _write_geopackage,
    ".parquet": _write_parquet,
    ".jsonl": _write_lines,
}
_NEEDS = {".geojson": ("shapely", "pyproj"), ".jsonl": ("shapely", "pyproj")}
_NEEDS |= {".gpkg": ("geopandas", "pyogrio"), ".parquet": ("geopandas", "pyarrow.parquet")}
