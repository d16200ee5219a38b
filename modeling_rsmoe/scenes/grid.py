"""How tiles cover a raster. Knows nothing about files or models."""

from bisect import bisect_right
from collections.abc import Iterator
from itertools import pairwise

from ..errors_rsmoe import RSMoEError
from ..utils.rasters.window import MIN_SIDE, Window


TILE, OVERLAP = 512, 0  # pixels; 512 is a whole number of the usual blocks (256, 512) [our decision]
MAX_TILES = 1_000_000  # more are a mistyped tile size rather than a wish [our decision]


class Grid:
    """Tiles of one size that cover a raster, row by row.

    Each tile begins `tile - overlap` pixels after the one before. The last of a row or column is moved back to end at
    the raster's edge, so that every pixel is covered and every tile is whole; a raster smaller than a tile is one tile
    of its own size [our decision].

    Args:
        width: of the raster, in pixels.
        height: of the raster, in pixels.
        tile: its side in pixels.
        overlap: of neighboring tiles, in pixels; 0 <= overlap < tile.

    Attributes:
        columns: where the tiles of a row begin.
        rows: where the tiles of a column begin.

    Raises:
        RSMoEError: a size that cannot be, or more than `MAX_TILES` tiles.
    """

    def __init__(self, width: int, height: int, tile: int = TILE, overlap: int = OVERLAP):
        check_tile(tile, overlap)
        self.tile, self.overlap = tile, overlap
        self._size = min(tile, width), min(tile, height)
        # All but the last: ranges, so that counting costs nothing.
        across, down = (range(0, max(0, length - tile), tile - overlap) for length in (width, height))
        count = (len(across) + 1) * (len(down) + 1)
        if count > MAX_TILES:
            raise RSMoEError(
                f"tiles of {tile} px would cut {width} x {height} px into {count:,} tiles, more than {MAX_TILES:,}: "
                "give a larger --tile or a smaller --overlap"
            )
        self.columns = [*across, width - self._size[0]]
        self.rows = [*down, height - self._size[1]]

    def __len__(self) -> int:
        return len(self.columns) * len(self.rows)

    def __getitem__(self, number: int) -> Window:
        row, column = divmod(number, len(self.columns))
        return Window(self.columns[column], self.rows[row], *self._size)

    def __iter__(self) -> Iterator[Window]:
        for row in self.rows:
            for column in self.columns:
                yield Window(column, row, *self._size)

    def area_shares(self) -> Iterator[float]:
        """Of each tile the share of its area that counts for it when pixels of several tiles are shared out evenly
        among them; the shares times the tiles' areas add up to the raster's area."""
        across, down = (
            _shares(starts, size) for starts, size in zip((self.columns, self.rows), self._size, strict=True)
        )
        for row in down:
            for column in across:
                yield row * column


def check_tile(tile: int, overlap: int) -> None:
    """Refuse a tile smaller than `MIN_SIDE`, and an overlap that is negative or as large as the tile."""
    if tile < MIN_SIDE:
        raise RSMoEError(f"a tile of {tile} px shows nothing: --tile takes at least {MIN_SIDE}, for example {TILE}")
    if not 0 <= overlap < tile:
        raise RSMoEError(f"an overlap of {overlap} px does not fit tiles of {tile} px: give 0 to {tile - 1}")


def _shares(starts: list[int], size: int) -> list[float]:
    """Of each interval of a length, beginning at ascending places, the mean over its pixels of 1 / (how many intervals
    cover the pixel)."""
    edges = sorted({*starts, *(start + size for start in starts)})
    shared = [0.0]  # up to each edge: the sum over pixels of 1 / cover
    for left, right in pairwise(edges):
        cover = bisect_right(starts, left) - bisect_right(starts, left - size)
        shared.append(shared[-1] + (right - left) / cover)
    place = {edge: index for index, edge in enumerate(edges)}
    return [(shared[place[start + size]] - shared[place[start]]) / size for start in starts]
