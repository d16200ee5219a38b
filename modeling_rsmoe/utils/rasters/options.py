"""How the rasters among images are read."""

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from .stretch import Stretch


@dataclass(frozen=True)
class RasterOptions:
    """Bands, no-data value and stretch, as of `open_raster`; None is the file's own choice."""

    bands: tuple[int | str, ...] | None = None
    nodata: float | None = None
    stretch: "Stretch | None" = None

    @property
    def settings(self) -> dict[str, Any]:
        """What is not left to the files, as JSON."""
        return {name: value for name, value in asdict(self).items() if value is not None}


AS_IN_THE_FILE = RasterOptions()
