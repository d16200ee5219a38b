"""The bands of a raster and the choice of those that are shown: one, three, or two of a radar (`radar`).

[our decision] Those that are asked for, by number, description or color interpretation; else those that the file calls
red, green and blue, or VV and VH (HH and HV); else the only one, or the three there are, without alpha; of two without
such names the first, and of more a choice is asked for.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...errors_rsmoe import RSMoEError
from .radar import RadarRendering, find_pair


CHOICE = "choose one, three for red, green and blue, or a radar's two (VV,VH)"
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
    """`4,3,2` or `red,green,blue` as numbers and names; an error if one is empty, or there are more than three."""
    names = [name.strip() for name in text.split(",")]
    if not all(names) or len(names) > 3:
        raise RSMoEError(f"--bands {text!r}: {CHOICE}, for example --bands 4,3,2")
    return tuple(int(name) if name.isdecimal() else name for name in names)


def choose_bands(
    raster: str, bands: Sequence[Band], chosen: Sequence[int | str | tuple[int, int]] | None
) -> tuple[int, ...]:
    """Numbers, from 1, of the one to three bands that are shown.

    Args:
        raster: its name, for errors.
        bands: all it has (`bands_of`).
        chosen: numbers, descriptions or colors, or a file's number (from 0) and the band's number there (from 1); None
            leaves the choice to the raster.

    Raises:
        RSMoEError: no such band, none or more than three, or no choice where one is needed.
    """
    if chosen is not None:
        if not 1 <= len(chosen) <= 3:
            raise RSMoEError(f"{len(chosen)} bands were chosen: {CHOICE}")
        return tuple(_find(raster, bands, band) for band in chosen)
    descriptions, colors = _names(bands)
    # Descriptions first: GDAL calls the bands of many files red, green and blue by their order alone.
    if all(descriptions.count(color) == 1 for color in _RED_GREEN_BLUE):
        return tuple(descriptions.index(color) + 1 for color in _RED_GREEN_BLUE)
    if pair := find_pair(descriptions):
        return pair[0] + 1, pair[1] + 1
    if all(colors.count(color) == 1 for color in _RED_GREEN_BLUE):
        return tuple(colors.index(color) + 1 for color in _RED_GREEN_BLUE)
    shown = [number for number, band in enumerate(bands, start=1) if band.color != "alpha"]
    if len(shown) in (1, 3):
        return tuple(shown)
    if len(shown) == 2:
        return (shown[0],)
    raise RSMoEError(
        f"{raster} has {len(shown)} bands ({_listed(bands)}): {CHOICE}: --bands 3,2,1 where blue comes first (most "
        "satellites), --bands 1,2,3 for most aerial images; where there is no --bands, as in evaluation and training: "
        "rsmoe data convert own ... --bands 4,3,2"
    )


def describe_choice(
    raster: str, bands: Sequence[Band], numbers: Sequence[int], is_default: bool, radar: RadarRendering | None
) -> str | None:
    """A sentence where more is done than to show one or three bands, or the first of two is shown by default."""
    names = [bands[number - 1].description or f"band {number}" for number in numbers]
    unit = ", in decibels" if radar and radar.to_db else ""
    if len(numbers) == 2:
        return f"{raster} is shown as {names[0]} in red, {names[1]} in green and their ratio in blue{unit}"
    if is_default and len(numbers) == 1 and sum(band.color != "alpha" for band in bands) == 2:
        others = "--bands 2 shows the other, --bands 1,2 both with their ratio, as is usual for radar"
        return f"{raster} has 2 bands without names; the first is shown{unit}: {others}"
    return f"{raster} is shown as {names[0]}{unit}" if unit and len(numbers) == 1 else None


def _find(raster: str, bands: Sequence[Band], band: int | str | tuple[int, int]) -> int:
    if isinstance(band, tuple):
        for number, one in enumerate(bands, start=1):
            if (one.file, one.number) == band:
                return number
        raise RSMoEError(f"{raster} has no band {band[1]} in its file {band[0] + 1}; it has {_listed(bands)}")
    text = str(band).strip().lower()
    for names in ([str(number + 1) for number in range(len(bands))], *_names(bands)):
        if names.count(text) == 1:
            return names.index(text) + 1
    raise RSMoEError(f"{raster} has no band {str(band)!r}; it has {_listed(bands)}: name others (--bands)")


def _names(bands: Sequence[Band]) -> tuple[list[str], list[str]]:
    """Descriptions, and colors."""
    return [band.description.lower() for band in bands], [band.color for band in bands]


def _listed(bands: Sequence[Band]) -> str:
    listed = ", ".join(
        f"{number} {band.description or band.color}" for number, band in enumerate(bands[:_MAX_LISTED], start=1)
    )
    return listed + (f", ... {len(bands)}" if len(bands) > _MAX_LISTED else "")
