"""Radar bands as an image: which bands are polarizations, and how two of them become three colors.

[our decision] Of two bands (VV and VH, HH and HV) the first is red, the second green and their ratio blue. Linear
power is shown in decibels, in which a few bright targets do not darken the rest: values are taken for linear power
where they are floats and none is negative. With negative values they are decibels already, and their ratio is a
difference.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    import numpy as np


PAIRS = (("vv", "vh"), ("hh", "hv"))
_POLARIZATION = re.compile("(?<![a-z])(vv|vh|hh|hv)(?![a-z])")


def polarization(name: str) -> str | None:
    """`vv` of a band called `Gamma0_VV`; None of a name without, or with several."""
    found = _POLARIZATION.findall(name.lower())
    return found[0] if len(found) == 1 else None


def find_pair(names: Sequence[str]) -> tuple[int, int] | None:
    """Places, from 0, of the like and the cross polarization, where there is one of each."""
    polarizations = [polarization(name) for name in names]
    for pair in PAIRS:
        if all(polarizations.count(one) == 1 for one in pair):
            return polarizations.index(pair[0]), polarizations.index(pair[1])
    return None


@dataclass(frozen=True)
class RadarRendering:
    """How one to three radar bands are shown: two are followed by their ratio.

    Attributes:
        to_db: whether values are linear power, to be shown in decibels.
        are_logs: whether a ratio is a difference.
    """

    to_db: bool = False
    are_logs: bool = False

    @classmethod
    def of(cls, samples: "Sequence[np.ndarray]") -> "RadarRendering":
        """As the bands' valid values call for."""
        import numpy as np  # not at the top: `rsmoe --help` comes by here

        is_negative = any(len(values) and values.min() < 0 for values in samples)
        to_db = not is_negative and all(np.issubdtype(values.dtype, np.floating) for values in samples)
        return cls(to_db, to_db or is_negative)

    def __call__(self, values: "np.ndarray", valid: "np.ndarray") -> "tuple[np.ndarray, np.ndarray]":
        """Values and whether they are data, both `[bands, H, W]`; of two bands, three."""
        import numpy as np

        values = values.astype(np.float32)
        with np.errstate(all="ignore"):  # what has no logarithm or ratio is no data
            if self.to_db:
                values = 10 * np.log10(values)
            if len(values) == 2:
                ratio = values[0] - values[1] if self.are_logs else values[0] / values[1]
                values = np.concatenate([values, ratio[None]])
                valid = np.concatenate([valid, valid.all(axis=0, keepdims=True)])
        return values, valid & np.isfinite(values)
