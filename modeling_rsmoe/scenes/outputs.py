"""Described scenes as a file: GeoJSON, GeoPackage, GeoParquet or JSON lines, by the name's ending.

Every format holds one feature for each described tile, and a record of each scene (its caption or answer, its grid,
counts, settings): GeoJSON under the member `rsmoe`, GeoPackage as the layer `scenes`, Parquet in the schema's metadata
under `rsmoe`, JSON lines as lines without `tile` after the tiles. In GeoJSON every tile has a `style` for web maps.

[our decision] GeoJSON and JSON lines hold footprints in WGS84 (null for a raster that is not placed on the earth).
GeoPackage and Parquet hold exact outlines in the rasters' own coordinate system, if all scenes share one, else WGS84
(also of rasters that ground control points place).
"""

import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors_rsmoe import RSMoEError
from ..utils.extras import require
from ..utils.files import whole_file
from ..utils.rasters.drivers import EXTRA
from ..utils.rasters.raster import Raster
from .change_result import ChangeResult
from .footprint import footprint, outline
from .grid import Window
from .result import SceneResult, SceneTask
from .style import legend, tile_style


if TYPE_CHECKING:
    from .describe import Tile

Result = SceneResult | ChangeResult

METADATA = "rsmoe"  # what the scenes' records are called in GeoJSON and Parquet
TILES, SCENES = "tiles", "scenes"  # layers of a GeoPackage


def check_format(output: Path) -> None:
    """Refuse a file whose ending is of no format, or whose format needs a package that is missing."""
    if output.suffix.lower() not in _WRITERS:
        raise RSMoEError(f"{output} ends in none of {', '.join(_WRITERS)}: give --output the format that you want")
    for module in _NEEDS.get(output.suffix.lower(), ()):
        require(module, EXTRA)


def write(results: Sequence[Result], output: Path) -> None:
    """Write a file, whose ending names the format, whole or not at all.

    Raises:
        RSMoEError: the format's library cannot write it.
        OSError: the disk is full, for example.
    """
    with whole_file(output) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a layer without a coordinate system: its raster has none
        try:
            _WRITERS[output.suffix.lower()](results, file)
        except RuntimeError as error:  # pyogrio's errors
            problem = f"{output} cannot be written ({error})"
            raise RSMoEError(f"{problem}: free some space, or give another place") from error


def _properties(result: Result, tile: Any) -> dict[str, Any]:
    """A tile's columns, flat, as GIS programs show them."""
    if isinstance(result, ChangeResult):
        return result.columns(tile, _properties(result.before, tile.before), _properties(result.after, tile.after))
    columns: dict[str, Any] = {
        "scene": result.raster.name,
        "tile": tile.number,
        **result.task.texts(tile.text),
        **flat_texts({"expert_text": tile.expert_texts, "router_prompt": tile.router_prompts}),
        **marked_sentences(tile),
        **tile.window._asdict(),
        "valid": tile.valid,
        **_scores(tile),
        **flat_texts({"expert_confidence": tile.expert_confidences}),
        "model": result.task.model,
        "revision": result.task.revision,
    }
    return {name: without_nul(value) if isinstance(value, str) else value for name, value in columns.items()}


def flat_texts(by_column: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Texts of each expert as columns: `expert_text_theme`, ..."""
    return {f"{column}_{name}": text for column, texts in by_column.items() for name, text in texts.items()}


def marked_sentences(tile: "Tile") -> dict[str, str]:
    """A paragraph as a column, each sentence after its writer: `[theme] A port. [object] Many ships.`"""
    marked = " ".join(f"[{sentence['writer']}] {sentence['text']}" for sentence in tile.sentences)
    return {"sentences": marked} if marked else {}


def without_nul(text: str) -> str:
    """A NUL would end the text in a database."""
    return text.replace("\0", "\ufffd")


def _scores(tile: "Tile") -> dict[str, float | None]:
    """An empty text has no confidence where others have one."""
    scores = {} if tile.score is None else {"score": tile.score}
    return scores | ({"confidence": tile.confidence} if tile.expert_confidences else {})


def tile_record(result: Result, tile: Any) -> dict[str, Any]:
    """A tile (of a `ChangeResult` a `TileChange`) as `rsmoe caption --json` prints an image, with its place."""
    if isinstance(result, ChangeResult):
        return result.tile_record(tile, tile_record(result.before, tile.before), tile_record(result.after, tile.after))
    return record_tile(result.task, result.raster, tile)


def record_tile(task: SceneTask, raster: Raster, tile: "Tile") -> dict[str, Any]:
    """`tile_record` of a scene while its other tiles are not described yet."""
    return {
        "scene": raster.name,
        "tile": tile.number,
        "window": list(tile.window),
        "valid": tile.valid,
        **task.texts(tile.text),
        **_scores(tile),
        "router_prompts": tile.router_prompts,
        "expert_texts": tile.expert_texts,
        **({"sentences": list(tile.sentences)} if tile.sentences else {}),
        **({"expert_confidences": tile.expert_confidences} if tile.expert_confidences else {}),
        "model": task.model,
        "revision": task.revision,
        "geometry": footprint(raster, tile.window),
    }


def feature_collection(results: Sequence[Result]) -> dict[str, Any]:
    """All tiles as GeoJSON, with each scene's record as the member `METADATA`."""
    return {"type": "FeatureCollection", METADATA: _scenes(results), "features": list(_features(results))}


def _scenes(results: Sequence[Result]) -> dict[str, Any]:
    return {SCENES: [result.record() for result in results]}


def _features(results: Sequence[Result]) -> Iterator[dict[str, Any]]:
    """Each tile as GeoJSON. Its property `style` is where ipyleaflet, leafmap and folium look for one."""
    colors = legend(results)
    for result, tile in _all_tiles(results):
        properties = {**_properties(result, tile), "style": tile_style(result.topic(tile), colors, tile.confidence)}
        geometry = footprint(result.raster, tile.window)
        yield {"type": "Feature", "geometry": geometry, "properties": properties}


def _all_tiles(results: Sequence[Result]) -> Iterator[tuple[Result, Any]]:
    for result in results:
        for tile in result.tiles:
            yield result, tile


def _write_lines(results: Sequence[Result], file: Path) -> None:
    with file.open("w", encoding="utf-8") as stream:
        for result, tile in _all_tiles(results):
            stream.write(json.dumps(tile_record(result, tile), ensure_ascii=False) + "\n")
        for result in results:
            stream.write(json.dumps(result.record(), ensure_ascii=False) + "\n")


def _write_geojson(results: Sequence[Result], file: Path) -> None:
    with file.open("w", encoding="utf-8") as stream:
        scenes = json.dumps(_scenes(results), ensure_ascii=False)
        stream.write(f'{{"type": "FeatureCollection", "{METADATA}": {scenes}, "features": [')
        for index, feature in enumerate(_features(results)):
            stream.write((",\n" if index else "\n") + json.dumps(feature, ensure_ascii=False))
        stream.write("\n]}\n")


def _write_geopackage(results: Sequence[Result], file: Path) -> None:
    records = []
    for result in results:
        columns = result.record().items()
        records.append(
            {name: value if isinstance(value, (str, int)) else json.dumps(value) for name, value in columns}
        )
    windows = [(result, Window(0, 0, result.raster.width, result.raster.height)) for result in results]
    for layer, frame in ((TILES, _tile_frame(results)), (SCENES, _frame(results, records, windows))):
        frame.to_file(file, layer=layer, driver="GPKG", engine="pyogrio")


def _write_parquet(results: Sequence[Result], file: Path) -> None:
    parquet = require("pyarrow.parquet", EXTRA)
    _tile_frame(results).to_parquet(file)
    table = parquet.read_table(file)
    scenes = json.dumps(_scenes(results), ensure_ascii=False)
    parquet.write_table(table.replace_schema_metadata({**table.schema.metadata, METADATA: scenes}), file)


def _tile_frame(results: Sequence[Result]) -> Any:
    properties = [_properties(result, tile) for result, tile in _all_tiles(results)]
    return _frame(results, properties, [(result, tile.window) for result, tile in _all_tiles(results)])


def _frame(results: Sequence[Result], rows: list[dict[str, Any]], windows: Sequence[tuple[Result, Window]]) -> Any:
    """A GeoDataFrame of rows and their windows' outlines."""
    geopandas, shapely = require("geopandas", EXTRA), require("shapely.geometry", EXTRA)
    rasters = [result.raster for result in results]
    systems = {raster.crs.to_wkt() if raster.crs is not None else None for raster in rasters}
    by_points = any(raster.ground_points for raster in rasters)
    if not by_points and len(systems) == 1 and len({raster.transform is None for raster in rasters}) == 1:
        system = rasters[0].crs if rasters[0].transform is not None else None
        shapes = [outline(result.raster, window) for result, window in windows]
    else:
        system = "EPSG:4326"
        footprints = [footprint(result.raster, window) for result, window in windows]
        shapes = [geometry and shapely.shape(geometry) for geometry in footprints]
    return geopandas.GeoDataFrame(rows, geometry=shapes, crs=system)


_WRITERS: dict[str, Callable[[Sequence[Result], Path], None]] = {
    ".geojson": _write_geojson,
    ".gpkg": _write_geopackage,
    ".parquet": _write_parquet,
    ".jsonl": _write_lines,
}
_NEEDS = {".geojson": ("shapely", "pyproj"), ".jsonl": ("shapely", "pyproj")}
_NEEDS |= {".gpkg": ("geopandas", "pyogrio"), ".parquet": ("geopandas", "pyarrow.parquet")}
