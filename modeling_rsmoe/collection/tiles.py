"""Captions of the tiles of scenes: a row for each, as in the GeoParquet of one scene, and a record of each scene."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from ..scenes.describe import MIN_VALID
from ..scenes.grid import Window
from ..scenes.outputs import flat_texts, without_nul
from ..scenes.result import raster_record
from ..scenes.summary import mentioned_nouns
from .describers import Captioner, CheckpointSource
from .images import Row
from .scenes import CollectionScene, CollectionTile, Cut
from .store import Store


if TYPE_CHECKING:
    import pyarrow as pa

    from ..inference import GenerationSettings

DESCRIBED, SKIPPED, ERROR = "described", "skipped", "error"  # what `status` says
_GEOMETRY = {"encoding": "WKB", "geometry_types": ["Polygon", "MultiPolygon"]}  # without `crs`: longitude, latitude
_GEO_PARQUET = {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": _GEOMETRY}}


class TileCaptioner(Captioner):
    """Captions of the tiles of scenes that were cut one way; what is mostly no data has a row without."""

    unit = "tiles"
    metadata = {b"geo": json.dumps(_GEO_PARQUET).encode()}

    def __init__(self, checkpoint: CheckpointSource, instruction: str, generation: "GenerationSettings", cut: Cut):
        super().__init__(checkpoint, instruction, generation)
        self.cut = cut

    @property
    def settings(self) -> dict[str, Any]:
        return {**super().settings, **self.cut.settings()}

    def table(self, rows: Sequence[Row]) -> "pa.Table":
        import pyarrow as pa

        assert self._loaded is not None
        experts = dict.fromkeys(self._loaded[1].experts, "")
        texts = ["caption", *flat_texts({"expert_text": experts, "router_prompt": experts})]
        dtypes = {"scene": pa.string(), "tile": pa.int64(), **dict.fromkeys(texts, pa.string())}
        if self.rates:
            dtypes |= dict.fromkeys(["confidence", *flat_texts({"expert_confidence": experts})], pa.float64())
        dtypes |= {**dict.fromkeys(Window._fields, pa.int64()), "valid": pa.float64()}
        dtypes |= {**dict.fromkeys(("model", "revision", "status", "error"), pa.string()), "geometry": pa.binary()}
        return pa.Table.from_pylist([self._columns_of(row) for row in rows], pa.schema(dtypes.items()))

    def _columns_of(self, row: Row) -> Row:
        texts = {"expert_text": row.get("expert_texts", {}), "router_prompt": row.get("router_prompts", {})}
        texts["expert_confidence"] = row.get("expert_confidences", {})
        status = ERROR if "error" in row else DESCRIBED if "caption" in row else SKIPPED
        checkpoint = {"model": self.checkpoint.name, "revision": self.checkpoint.revision}
        columns = {**row, **flat_texts(texts), **checkpoint, "status": status}
        return {name: without_nul(value) if isinstance(value, str) else value for name, value in columns.items()}

    def revisit(self, items: Sequence[CollectionTile], store: Store) -> list[CollectionTile]:  # type: ignore[override]
        """Of each scene without a tile that has enough data, those with at least half as much as its best one."""
        sparse: list[CollectionTile] = []
        for _, rows in _by_scene(items, store, ["valid", "status"]):
            tiles = [(tile, row["valid"] or 0.0, row["status"]) for tile, row in rows]
            best = max(valid for _, valid, _ in tiles)
            if 0 < best < MIN_VALID:
                again = [tile for tile, valid, status in tiles if status == SKIPPED and valid >= best / 2]
                sparse += [tile._replace(min_valid=best / 2) for tile in again]
        return sparse

    def summary(self, items: Sequence[CollectionTile], store: Store) -> dict[str, Any]:  # type: ignore[override]
        """A record of each scene: how it was read, its tiles by status, and the nouns that its captions mention."""
        by_scene = _by_scene(items, store, ["caption", "status"])
        return {"scenes": [_record(scene, (row for _, row in rows)) for scene, rows in by_scene]}


def _by_scene(
    tiles: Sequence[CollectionTile], store: Store, columns: Sequence[str]
) -> Iterator[tuple[CollectionScene, Iterator[tuple[CollectionTile, Row]]]]:
    return groupby(zip(tiles, store.rows(tiles, columns), strict=True), key=lambda pair: pair[0].scene)


def _record(scene: CollectionScene, rows: Iterator[Mapping[str, Any]]) -> dict[str, Any]:
    if scene.raster is None:
        return {"scene": scene.name, "error": scene.error}
    counts: Counter[str] = Counter()

    def captions() -> Iterator[str]:
        for row in rows:
            counts[row["status"]] += 1
            if row["caption"] is not None:
                yield row["caption"]

    mentioned = mentioned_nouns(captions())
    tiles = {"tiles": counts[DESCRIBED], "skipped": counts[SKIPPED], "errors": counts[ERROR]}
    return {"scene": scene.name, "mentioned": mentioned, **tiles, **raster_record(scene.raster)}
