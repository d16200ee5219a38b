"""Tiles cover every pixel, whatever the sizes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_rsmoe import RSMoEError
from modeling_rsmoe.scenes.grid import Grid, Window


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(8, 150), st.integers(8, 150), st.integers(8, 70), st.data())
def test_every_pixel_is_covered_by_whole_tiles(width: int, height: int, tile: int, data: st.DataObject) -> None:
    overlap = data.draw(st.integers(0, tile - 1))
    grid = Grid(width, height, tile, overlap)
    cover, windows = np.zeros((height, width), int), list(grid)
    assert len(windows) == len(grid) == len(set(windows))
    for column, row, across, down in windows:
        assert (across, down) == (min(tile, width), min(tile, height))
        assert column >= 0 and row >= 0 and column + across <= width and row + down <= height
        cover[row : row + down, column : column + across] += 1
    assert cover.min() >= 1
    for window, share in zip(windows, grid.area_shares(), strict=True):
        column, row, across, down = window
        assert share == pytest.approx((1 / cover[row : row + down, column : column + across]).mean())
    assert sum(share * windows[0].width * windows[0].height for share in grid.area_shares()) == pytest.approx(
        width * height
    )


def test_the_last_tile_is_moved_back_to_the_edge() -> None:
    grid = Grid(1000, 520, 512, 64)
    assert (grid.columns, grid.rows) == ([0, 448, 488], [0, 8])
    assert list(grid)[-1] == Window(488, 8, 512, 512)
    assert Grid(1024, 512).columns == [0, 512]  # no tile more than are needed
    assert list(Grid(100, 20)) == [Window(0, 0, 100, 20)]


@pytest.mark.parametrize(
    ("tile", "overlap", "message"),
    [
        (0, 0, "a tile of 0 px shows nothing: --tile takes at least 8"),
        (-5, 0, "a tile of -5 px"),
        (64, 64, "an overlap of 64 px does not fit tiles of 64 px: give 0 to 63"),
        (64, -1, "an overlap of -1 px"),
        (8, 7, "into 8,993,95[0-9],[0-9,]+ tiles, more than 1,000,000: give a larger --tile"),
    ],
)
def test_sizes_that_cannot_be(tile: int, overlap: int, message: str) -> None:
    with pytest.raises(RSMoEError, match=message):
        Grid(2_999_000, 2_999_000, tile, overlap)
