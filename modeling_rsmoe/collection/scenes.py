"""Collections of scenes: the rasters of a folder, a list or STAC documents, opened and measured once, and their tiles.

A scene is opened by whoever starts the run: its size, bands and stretch are sent with its tiles, which workers read
where they need them. Knows nothing about models.
"""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors_rsmoe import RSMoEError
from ..scenes.describe import MIN_VALID, read_side
from ..scenes.files import is_stac
from ..scenes.footprint import footprint
from ..scenes.grid import OVERLAP, TILE, Grid
from ..scenes.stac import Scene, each_scene
from ..utils.extras import require
from ..utils.progress import Progress, no_progress
from ..utils.rasters.drivers import EXTRA, is_gdal_path
from ..utils.rasters.options import RasterOptions
from ..utils.rasters.raster import Raster, open_raster
from .images import VERSION, Row, find_images, printable_name


if TYPE_CHECKING:
    from PIL import Image

# Of a folder. Pictures beside rasters are mostly previews, and a .vrt mostly names its neighbors: both are taken where
# a list names them [our decision].
SCENE_SUFFIXES = {".tif", ".tiff", ".jp2", ".img", ".ntf"}


@dataclass(frozen=True)
class Cut:
    """How scenes are read and cut: sizes in pixels, the others as of `scenes.pipeline.open_scenes`."""

    tile: int = TILE
    overlap: int = OVERLAP
    bands: Sequence[int | str] | None = None
    asset: str | None = None
    nodata: float | None = None

    def settings(self) -> dict[str, Any]:
        """All of it, as JSON."""
        return asdict(self)


@dataclass(frozen=True, eq=False)
class CollectionScene:
    """A scene of a collection.

    Attributes:
        name: its path in the folder, or as the list has it; of a STAC item its id.
        version: sizes and times of its files, as far as they are local.
        raster: closed; None where it cannot be opened.
        grid: of its tiles.
        error: why it cannot be opened.
    """

    name: str
    version: str
    raster: Raster | None = None
    grid: Grid | None = None
    error: str = ""


class CollectionTile(NamedTuple):
    """A tile of a scene, or all that there is of one that cannot be opened.

    Attributes:
        scene: of all its tiles.
        number: in its grid; None of a scene without.
        min_valid: the least share of data with which it is described (`scenes.describe.MIN_VALID`).
    """

    scene: CollectionScene
    number: int | None
    min_valid: float = MIN_VALID

    @property
    def key(self) -> str:
        return f"{self.number} {self.scene.name}"

    def known(self) -> Row:
        row: Row = {"scene": self.scene.name, "tile": self.number, VERSION: self.scene.version}
        if self.number is not None and self.scene.grid is not None:
            row |= self.scene.grid[self.number]._asdict()
        return row

    @property
    def path(self) -> str:
        return self.scene.name

    def read(self, row: Row, image_side: int, raster_options: RasterOptions) -> "Image.Image | None":
        raster, grid = self.scene.raster, self.scene.grid
        if raster is None or grid is None or self.number is None:
            raise RSMoEError(self.scene.error)
        shapely, shape = require("shapely", EXTRA), require("shapely.geometry", EXTRA).shape
        window = grid[self.number]
        place = footprint(raster, window)
        row["geometry"] = place and shapely.to_wkb(shape(place))
        tile = raster.read(window, read_side(max(window.width, window.height), image_side))
        row["valid"] = round(tile.valid_share, 4)
        return tile.image if row["valid"] >= self.min_valid else None

    def has_changed(self, version: str | None) -> bool:
        return version != self.scene.version

    def close(self) -> None:
        if self.scene.raster is not None:
            self.scene.raster.close()


def find_tiles(
    sources: Sequence[str], cut: Cut = Cut(), remote: bool = False, progress: Progress = no_progress
) -> list[CollectionTile]:
    """All tiles of all scenes, in the order that their rows will have; a scene that cannot be opened is one of them.

    Args:
        sources: as of `find_images`: a folder of rasters, a list of rasters and STAC documents, or these themselves.
        cut: how they are cut.
        remote: whether local STAC documents and rasters may name files on a network.
        progress: told how many of the sources are opened.

    Raises:
        RSMoEError: there are no scenes, or two of one name.
    """
    found = find_images(sources, SCENE_SUFFIXES)
    tiles: list[CollectionTile] = []
    names: Counter[str] = Counter()
    for number, (name, path) in enumerate(found):
        progress("opening the scenes", number, len(found), "scenes")
        for scene in _open(printable_name(name), path, cut, remote):
            names[scene.name] += 1
            numbers = [None] if scene.grid is None else range(len(scene.grid))
            tiles += [CollectionTile(scene, number) for number in numbers]
    twice = [name for name, count in names.items() if count > 1]
    if twice:
        problem = f"{len(twice)} scenes stand in the collection more than once, such as {twice[0]}"
        raise RSMoEError(f"{problem}: name each once, and give STAC items ids of their own")
    return tiles


def _open(name: str, path: str, cut: Cut, remote: bool) -> Iterator[CollectionScene]:
    """The scene of a raster, or those of a STAC document."""
    try:
        if is_stac(path):
            for item, scene in each_scene(path, cut.bands, cut.asset, remote):
                if isinstance(scene, Scene):
                    yield _measured(scene, cut, remote)
                else:
                    yield CollectionScene(printable_name(item), "", error=str(scene))
        else:
            yield _measured(Scene(name, (path,), cut.bands), cut, remote)
    except RSMoEError as error:  # of the document
        yield CollectionScene(name, _version([path]), error=str(error))


def _measured(scene: Scene, cut: Cut, remote: bool) -> CollectionScene:
    name, version = printable_name(scene.name), _version(scene.paths)
    try:
        with open_raster(scene.paths, scene.bands, scene.name, remote, cut.nodata) as raster:
            return CollectionScene(name, version, raster, Grid(raster.width, raster.height, cut.tile, cut.overlap))
    except RSMoEError as error:
        return CollectionScene(name, version, error=str(error))


def _version(paths: Sequence[str]) -> str:
    """Sizes and times: the files of an archive are too large to be read for a hash [our decision]."""
    versions = []
    for path in paths:
        if not is_gdal_path(path) and os.path.exists(path):
            status = os.stat(path)
            versions.append(f"{status.st_size} {status.st_mtime_ns}")
    return ", ".join(versions)
