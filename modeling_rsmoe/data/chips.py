"""Chips among one's own images: 16 bits, floats, many bands.

[our decision] A data folder gets them as RGB PNGs of 8 bits, as the model would see them. What reads the folder needs
no choice of bands, and the hash of the data says what was learned. Ordinary images keep their bytes.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ..errors_rsmoe import RSMoEError
from ..utils.progress import Progress, no_progress
from ..utils.rasters.image import measure_stretch
from ..utils.rasters.options import AS_IN_THE_FILE, RasterOptions
from ..utils.tables import count_of


if TYPE_CHECKING:
    from PIL import Image

StretchBy = Literal["image", "collection"]


@dataclass(frozen=True)
class Chips:
    """The chips among some images, and how they are read.

    Attributes:
        files: their paths; other images are read as ever.
        options: bands, no-data value and stretch.
        note: for the user, or `""`.
    """

    files: Collection[Path] = frozenset()
    options: RasterOptions = AS_IN_THE_FILE
    note: str = ""

    def read(self, image: Path) -> "Image.Image":
        """An image as the model would see it; errors as of `read_image`."""
        from ..utils.images import read_image

        return read_image(image, raster_options=self.options if image in self.files else AS_IN_THE_FILE)


NO_CHIPS = Chips()


def find_chips(
    images: Sequence[Path],
    options: RasterOptions = AS_IN_THE_FILE,
    stretch: StretchBy | None = None,
    progress: Progress = no_progress,
) -> Chips:
    """The chips among images, by their headers.

    Args:
        images: their paths; one that cannot be read is no chip.
        options: bands and no-data value.
        stretch: "image", each by its own numbers (the default), or "collection", all by those of all.
        progress: how many images are looked at.

    Raises:
        RSMoEError: something was chosen, and there are no chips.
    """
    from ..utils.images import is_chip  # with torch, which public datasets do not need

    files = []
    for number, image in enumerate(images):
        progress("looking for chips", number, len(images), "images")
        if is_chip(image, options):
            files.append(image)
    given = [] if options.bands is None else [f"--bands {','.join(map(str, options.bands))}"]
    given += [] if options.nodata is None else [f"--nodata {options.nodata:g}"]
    given += [] if stretch is None else [f"--stretch {stretch}"]
    if not files:
        if given:
            what = "chips of 16 bits, floats or many bands, and all of these images are ordinary ones"
            raise RSMoEError(f"{' '.join(given)}: this is for {what}; leave it out")
        return NO_CHIPS
    if stretch == "collection":
        options = replace(options, stretch=measure_stretch([str(file) for file in files], options))
    how = " ".join(given) or "each as its file says"
    note = f"of {count_of(len(images), 'image')} {len(files):,} are chips, written as RGB PNGs of 8 bits ({how})"
    return Chips(frozenset(files), options, note)
