"""The bands of a raster and the choice of the one or three that are shown.

[our decision] Those that are asked for, by number, description or color interpretation; else those that the file calls
red, green and blue; else the only one, or the three there are, without alpha; of more, a choice is asked for.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...errors_rsmoe import RSMoEError


_RED_GREEN_BLUE = ("red", "green", "blue")
_MAX_LISTED = 16


@dataclass(frozen=True)
class Band:
    """A band: the number of its file (from 0), its number there (from 1), and what rasterio says of it."""

    file: int
    number: int
    description: str
    color: str
    dtype: str


def bands_of(datasets: Sequence[Any]) -> list[Band]:
    """Every band of every file, in order."""
    bands = []
    for file, dataset in enumerate(datasets):
        # Once for each file: rasterio makes these lists anew each time, and a damaged header may promise 65,535 bands.
        properties = zip(dataset.indexes, dataset.descriptions, dataset.colorinterp, dataset.dtypes, strict=True)
        for number, description, color, dtype in properties:
            bands.append(Band(file, number, (description or "").strip(), color.name, dtype))
    return bands


def parse_bands(text: str) -> tuple[int | str, ...]:
    """`4,3,2` or `red,green,blue` as numbers and names; an error if one is empty, or there are not one or three."""
    names = [name.strip() for name in text.split(",")]
    if not all(names) or len(names) not in (1, 3):
        raise RSMoEError(
            f"--bands {text!r}: choose one band, or three for red, green and blue, for example --bands 4,3,2"
        )
    return tuple(int(name) if name.isdecimal() else name for name in names)


def choose_bands(raster: str, bands: Sequence[Band], chosen: Sequence[int | str] | None) -> tuple[int, ...]:
    """Numbers, from 1, of the one or three bands that are shown.

    Args:
        raster: its name, for errors.
        bands: all it has (`bands_of`).
        chosen: numbers, descriptions or colors; None leaves the choice to the file.

    Raises:
        RSMoEError: no such band, not one or three, or no choice where one is needed.
    """
    if chosen is not None:
        if len(chosen) not in (1, 3):
            raise RSMoEError(f"{len(chosen)} bands were chosen: choose one, or three for red, green and blue")
        return tuple(_find(raster, bands, band) for band in chosen)
    # Descriptions first: GDAL calls the bands of many files red, green and blue by their order alone.
    for names in _names(bands):
        if all(names.count(color) == 1 for color in _RED_GREEN_BLUE):
            return tuple(names.index(color) + 1 for color in _RED_GREEN_BLUE)
    shown = [number for number, band in enumerate(bands, start=1) if band.color != "alpha"]
    if len(shown) in (1, 3):
        return tuple(shown)
    raise RSMoEError(
        f"{raster} has {len(shown)} bands ({_listed(bands)}): choose one, or three for red, green and blue, with "
        "--bands, for example --bands 3,2,1 (or write them to a file: gdal_translate -b 3 -b 2 -b 1)"
    )


def _find(raster: str, bands: Sequence[Band], band: int | str) -> int:
    text = str(band).strip().lower()
    for names in ([str(number + 1) for number in range(len(bands))], *_names(bands)):
        if names.count(text) == 1:
            return names.index(text) + 1
    raise RSMoEError(f"{raster} has no band {str(band)!r}; it has {_listed(bands)}")


def _names(bands: Sequence[Band]) -> tuple[list[str], list[str]]:
    """Descriptions, and colors."""
    return [band.description.lower() for band in bands], [band.color for band in bands]


def _listed(bands: Sequence[Band]) -> str:
    listed = ", ".join(
        f"{number} {band.description or band.color}" for number, band in enumerate(bands[:_MAX_LISTED], start=1)
    )
    return listed + (f", ... {len(bands)}" if len(bands) > _MAX_LISTED else "")
