"""From a raster's values to 8 bits, the same way in every tile of a scene.

[our decision] 8-bit bands are taken as they are. All others are stretched linearly, each band by itself, so that the
2nd percentile of the scene's valid values becomes 0 and the 98th 255: the habit of desktop GIS, under which haze in
one band does not tint the image. Of a band without a range (one value everywhere) integers are scaled by their
type's largest value and floats by 1.

[our decision] A value is taken for an undeclared no-data value, such as a border of -9999, if it is the smallest or
largest of a band, that of 1 % of the pixels at least, and farther from the 1st to 99th percentile of all others than
these are apart.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


PERCENTILES = (2.0, 98.0)
_MIN_FILL_SHARE = 0.01
_REST_PERCENTILES = (1.0, 99.0)  # an overview mixes a few pixels of the border with data


@dataclass(frozen=True)
class Stretch:
    """A linear stretch: for each band, what becomes 0 and what becomes 255."""

    low: tuple[float, ...]
    high: tuple[float, ...]

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """Values `[bands, H, W]` of any real type to uint8; what is not finite becomes 0."""
        bands = zip(values, self.low, self.high, strict=True)
        return np.stack([_to_8_bit(band, low, high) for band, low, high in bands])  # one by one: less memory


def _to_8_bit(values: np.ndarray, low: float, high: float) -> np.ndarray:
    with np.errstate(all="ignore"):  # extreme floats may overflow: they are clipped
        scaled = (values.astype(np.float64) - low) / (high - low) * 255
        scaled = np.where(np.isfinite(values), np.nan_to_num(scaled, nan=0.0), 0.0)
    return np.rint(scaled.clip(0, 255)).astype(np.uint8)


def percentile_stretch(samples: list[np.ndarray], dtype: np.dtype) -> Stretch:
    """The stretch of a scene from finite values, at least one of each band."""
    low, high = zip(*(_ends(sample, dtype) for sample in samples), strict=True)
    return Stretch(low, high)


def _ends(sample: np.ndarray, dtype: np.dtype) -> tuple[float, float]:
    low, high = (float(end) for end in np.percentile(sample.astype(np.float64), PERCENTILES))
    if high <= low:  # almost all of one value: the few others are what can be seen
        low, high = float(sample.min()), float(sample.max())
    if high <= low:
        return 0.0, 1.0 if np.issubdtype(dtype, np.floating) else float(np.iinfo(dtype).max)
    return low, high


class Fill(NamedTuple):
    """A value that looks like no data, the share of pixels that have it, and where the others lie."""

    value: float
    share: float
    low: float
    high: float


def find_fill(samples: Sequence[np.ndarray]) -> Fill | None:
    """The value that marks pixels without data although the file does not say so, from values of each band."""
    for sample in samples:
        for value in map(float, (sample.min(), sample.max())):
            rest = sample[sample != value]
            share = 1 - len(rest) / len(sample)
            if share < _MIN_FILL_SHARE or not len(rest):
                continue
            low, high = (float(end) for end in np.percentile(rest.astype(np.float64), _REST_PERCENTILES))
            if max(low - value, value - high) > high - low > 0:
                return Fill(value, share, low, high)
    return None
