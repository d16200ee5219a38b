"""A place in a raster, and the smallest that shows anything."""

from typing import NamedTuple


MIN_SIDE = 8  # as of `images_rsmoe`: fewer pixels show nothing that could be described


class Window(NamedTuple):
    """A rectangle of pixels, from its upper left corner."""

    column: int
    row: int
    width: int
    height: int
