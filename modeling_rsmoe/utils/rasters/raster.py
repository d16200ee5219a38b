"""One raster of any size, validated when it is opened and read by windows as RGB images with masks of what is data.

A raster is a file, or several files of the same grid whose bands are stacked (the bands of a satellite scene). Memory
does not depend on its size: GDAL's block cache is bounded, blocks of more than `MAX_BLOCK_BYTES` are refused, and
whatever is wanted smaller is read smaller (from the file's overviews where it has some). Knows nothing about tiles or
models.

[our decision] A pixel is data if any of the chosen bands says so (GDAL's own rule): no-data values, alpha, mask files
and NaN are obeyed, and what is no data is black. A value that only looks like one (`stretch.find_fill`) is taken for
it, with a note.
"""

import itertools
import logging
import math
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit
from urllib.request import url2pathname

import numpy as np

from ...errors_rsmoe import RSMoEError
from ..extras import require
from .archives import in_zip
from .bands import bands_of, choose_bands, describe_choice
from .drivers import EXTRA, driver_of, is_gdal_path, is_remote
from .ground_points import approximate_transform, turn_points
from .radar import RadarRendering, polarization
from .sources import OFFLINE, SourceCheck
from .stretch import Stretch, find_fill, percentile_stretch
from .window import MIN_SIDE, Window


if TYPE_CHECKING:
    from PIL import Image

MAX_BLOCK_BYTES = 256 * 2**20
# GDAL keeps unpacked blocks up to 5 % of the machine's memory; it reads this limit (MB) once, at its first block, and
# an option of a rasterio.Env does not hold between reads.
_CACHE_MB = "64"
_SAMPLE_SIDE = 1024  # the scene as its percentiles see it
_MAX_OVERVIEW_PIXELS = 4096 * 4096  # up to here, or with overviews, the sample is the whole scene made smaller
_NUM_SAMPLE_WINDOWS, _SAMPLE_WINDOW_SIDE = 16, 64  # else 16 x 16 windows of 64 x 64 px, evenly spread
_MAX_CHECKED_BLOCKS = 65_536
_COMPLEX = {"complex_int16": "int32", "complex_int32": "int64"}  # GDAL's, with numpy's types of the same size


@dataclass(frozen=True)
class RasterImage:
    """A window as an image, "RGB" and black where there is no data, and what of it is data, bool `[H, W]`."""

    image: "Image.Image"
    valid: np.ndarray

    @property
    def valid_share(self) -> float:
        """The share of pixels that are data, 0 to 1."""
        return float(self.valid.mean())


def open_raster(
    path: str | os.PathLike | Sequence[str],
    bands: Sequence[int | str | tuple[int, int]] | None = None,
    name: str | None = None,
    remote: bool = False,
    nodata: float | None = None,
    stretch: Stretch | None = None,
    as_image: bool = False,
    alone: bool = False,
) -> "Raster":
    """Open a raster and validate it: no model needs to be loaded to learn that it cannot be read.

    Args:
        path: a file, whatever rasterio reads (`/vsizip/...`, `s3://...`, `https://...`), or several of the same grid
            whose bands are stacked in this order. Of a `file://` URL the file, of a `.zip` the one raster in it.
        bands: one (gray), three (red, green, blue) or two (of a radar: red, green and their ratio), by number from 1,
            by description or color interpretation, or as the file's number from 0 and the band's number there.
        name: what errors and results call it; by default its path.
        remote: whether a local file may name files on a network, or what else GDAL opens (`sources`). Else a network
            is used only for a path that names one.
        nodata: a value that is no data, beside those that the file declares; by default one that is noticed. NaN is
            none.
        stretch: how values become 8 bits, in place of the raster's own; 8-bit bands are taken as they are.
        as_image: it will be read as a whole: Pillow's limit of pixels holds, and it needs no place on the earth.
        alone: the file is of somebody else: nothing beside it is read, and it may name no file.

    Returns:
        An open `Raster`: close it, or use it in a `with` block.

    Raises:
        RSMoEError: no such file, no raster, truncated or lying about its size, complex values, no data, too small,
            blocks too large, no such band, more than three bands and no choice, a file that names others which
            may not be opened, or a `.zip` of several rasters.
    """
    paths = [os.fspath(path)] if isinstance(path, (str, os.PathLike)) else list(path)
    paths = [url2pathname(urlsplit(path).path) if path.startswith("file://") else path for path in paths]
    raster = Raster([in_zip(path) for path in paths], name or paths[0], remote, nodata, as_image, alone)
    try:
        raster._prepare(bands, stretch)
    except Exception as error:  # outside of a read: a color interpretation that GDAL does not know, for example
        raster.close()
        if isinstance(error, RSMoEError) or not isinstance(error, raster._errors):
            raise
        raise raster._cannot("be opened", error) from error
    return raster


class Raster:
    """An open raster, made by `open_raster`; not to be shared by threads.

    Attributes:
        name: what the user calls it.
        paths: of its files.
        width: in pixels.
        height: in pixels.
        bands: numbers (from 1) of the chosen bands; two are shown with their ratio.
        band_names: their descriptions, "" where the file has none.
        dtype: numpy's, of the chosen bands as they are shown.
        crs: rasterio's CRS, or None.
        transform: affine, from pixels to `crs`; None if the file has none that can be used. A raster that is stored
            mirrored is turned: then pixels are counted from the other side, here and everywhere.
        ground_points: where there is no transform: rasterio's ground control points and their coordinate system.
        stretch: how values become 8 bits; None for 8-bit bands.
        nodata: the value that is no data beside those that the file declares, or None.
        notes: what the user should know, such as a missing coordinate system; one sentence each.
    """

    def __init__(
        self,
        paths: list[str],
        name: str,
        remote: bool = False,
        nodata: float | None = None,
        as_image: bool = False,
        alone: bool = False,
    ):
        self.name, self.paths, self._remote = name, paths, remote
        self._as_image, self._alone = as_image, alone
        self.nodata = None if nodata is None or math.isnan(nodata) else nodata
        self._notices_fill = nodata is None
        self.notes: list[str] = []
        os.environ.setdefault("GDAL_CACHEMAX", _CACHE_MB)
        self._rasterio = require("rasterio", EXTRA)
        gdal = require("rasterio._err", EXTRA).CPLE_BaseError
        # What damaged files provoke: also numbers out of range, unknown kinds, GDAL's bare errors.
        self._errors: tuple[type[Exception], ...] = (self._rasterio.errors.RasterioError, gdal, OSError, ValueError)
        self._errors += (ArithmeticError, LookupError, MemoryError)
        self._opened: list[Any] = []
        self._warnings = _Warnings()
        self._palette: np.ndarray | None = None
        self._radar: RadarRendering | None = None
        self._turned_note = ""
        self._turned_axis = 0  # of [bands, H, W]: 1 if rows are read from the bottom, 2 if columns from the right
        self.stretch: Stretch | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        """Without open files: where it is sent, it is read as it was measured here."""
        return {name: value for name, value in vars(self).items() if name not in ("_rasterio", "_warnings", "_opened")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["paths"], state["name"], state["_remote"])  # type: ignore[misc]
        vars(self).update(state)

    def close(self) -> None:
        """Let go of the files; a later `read` opens them again."""
        for dataset in self._opened:
            dataset.close()
        self._opened = []

    def read(self, window: Window | None = None, max_side: int | None = None, average: bool = True) -> RasterImage:
        """A window as an image.

        Args:
            window: by default the whole raster (then give `max_side`: it may not fit into memory).
            max_side: the longest side of the image, in pixels; a larger window is read smaller, from overviews where
                the file has some.
            average: of the pixels that fall together, where it is read smaller; else the nearest one.

        Raises:
            RSMoEError: the file is damaged there, or the connection failed.
        """
        from PIL import Image

        window = window or Window(0, 0, self.width, self.height)
        values, valid = self._read(window, max_side, average)
        colors = self._colors(values, valid)  # [3, H, W]
        is_data: np.ndarray = np.any(valid, axis=0)
        colors = np.moveaxis(colors * is_data, 0, -1)
        return RasterImage(Image.fromarray(np.ascontiguousarray(colors)), is_data)

    def overview(self, max_side: int = 1024) -> RasterImage:
        """The whole raster, its longest side at most `max_side` pixels."""
        return self.read(None, max_side)

    # ---- opening

    @property
    def _datasets(self) -> list[Any]:
        if not self._opened:
            with self._gdal("be opened"):
                self._opened = [self._rasterio.open(path, driver=driver_of(path)) for path in self.paths]
        return self._opened

    def _prepare(self, bands: Sequence[int | str | tuple[int, int]] | None, stretch: Stretch | None) -> None:
        if not self._remote:
            with self._gdal("be opened"):
                check = SourceCheck(self._rasterio.open, self._alone)
                for path in itertools.filterfalse(is_gdal_path, self.paths):
                    check.check(path)
        first = self._datasets[0]
        self.width, self.height = first.width, first.height
        for path, dataset in zip(self.paths, self._datasets, strict=True):
            self._check(path, dataset)
        if not self._as_image:
            self._locate(first)
        all_bands = bands_of(self._datasets)
        self.bands = choose_bands(self.name, all_bands, bands)
        self._chosen = [all_bands[number - 1] for number in self.bands]
        self.band_names = tuple(band.description for band in self._chosen)
        dtypes = [band.dtype for band in self._chosen]
        if any(dtype.startswith("complex") for dtype in dtypes):
            problem = f"{self.name} holds complex values ({dtypes[0]}), which are no image"
            raise RSMoEError(f"{problem}: write their amplitude to a file first")
        self.dtype = np.result_type(*dtypes)
        self._palette = self._color_table()
        self._prepare_radar()
        if note := describe_choice(self.name, all_bands, self.bands, bands is None, self._radar):
            self.notes.append(note)
        self._read(Window(self.width - 1, self.height - 1, 1, 1))  # a header may promise more than there is
        if not self._is_8_bit():
            self.stretch = self._make_stretch(stretch)
        elif self._has_masks() or self.nodata is not None:
            self.sample()  # a scene without any data is refused now

    def _prepare_radar(self) -> None:
        """How radar bands are shown: polarizations by their names, or any two bands that were chosen."""
        if len(self.bands) == 2 or all(map(polarization, self.band_names)):
            self._radar = RadarRendering.of(self.sample())
            self.dtype = np.dtype(np.float32)

    def _check(self, path: str, dataset: Any) -> None:
        width, height = dataset.width, dataset.height
        if self._as_image:
            from ...images_rsmoe import check_size

            check_size(width, height, path)
        if not dataset.count:
            names = ", ".join(dataset.subdatasets[:3])
            raise RSMoEError(f"{path} has no bands of its own; name one of its subdatasets: {names or '(none)'}")
        if min(width, height) < MIN_SIDE:
            raise RSMoEError(
                f"{path} has {width} x {height} pixels, too few to describe: give at least {MIN_SIDE} x {MIN_SIDE}"
            )
        first = self._datasets[0]
        is_of_grid = (width, height) == (self.width, self.height) and dataset.transform == first.transform
        if dataset is not first and not is_of_grid:  # a transform of NaN is not equal to itself
            raise RSMoEError(
                f"{path} ({width} x {height} px) and {self.paths[0]} ({self.width} x {self.height} px) are not of one "
                "grid: name bands of the same resolution"
            )
        rows, columns = dataset.block_shapes[0]
        num_bands = dataset.count if dataset.profile.get("interleave") == "pixel" else 1  # read together
        size = rows * columns * num_bands * np.dtype(_COMPLEX.get(dataset.dtypes[0], dataset.dtypes[0])).itemsize
        if size > MAX_BLOCK_BYTES:
            raise RSMoEError(
                f"{path} is stored in blocks of {columns} x {rows} px ({size >> 20} MiB), to be read as a whole: "
                "store it in tiles first (gdal_translate -of COG)"
            )
        if dataset.driver == "GTiff" and not is_gdal_path(path):
            with self._gdal("be read"):
                self._check_blocks(path, dataset)
        wrong_headers = [text for text in self._warnings.texts if "Incorrect count" in text or "Bogus" in text]
        if wrong_headers:
            raise _damaged(path, f"its header says {width} x {height} px; {wrong_headers[0]}")

    def _check_blocks(self, path: str, dataset: Any) -> None:
        """A TIFF's blocks must lie in the file: what was cut off is known before hours of work."""
        rows, columns = dataset.block_shapes[0]
        across, down = math.ceil(dataset.width / columns), math.ceil(dataset.height / rows)
        size, step = os.path.getsize(path), max(1, across * down // _MAX_CHECKED_BLOCKS)
        for number in range(0, across * down, step):
            place = f"{number % across}_{number // across}"
            offset, length = (
                int(dataset.get_tag_item(f"BLOCK_{what}_{place}", "TIFF", bidx=1) or 0) for what in ("OFFSET", "SIZE")
            )
            if offset and length and offset + length > size:
                data = f"whose data would reach byte {offset + length} of {size}"
                raise _damaged(path, f"its header says {dataset.width} x {dataset.height} px, {data}")

    def _locate(self, dataset: Any) -> None:
        """`crs`, `transform` and `ground_points`, with a note if the raster is not placed by the first two."""
        try:
            self.crs = dataset.crs or None
        except self._rasterio.errors.CRSError:
            self.crs = None
        transform = dataset.transform
        is_usable = all(map(math.isfinite, transform)) and transform.determinant != 0 and not transform.is_identity
        self.transform = transform if is_usable else None
        self.ground_points = None if is_usable or not dataset.gcps[1] or len(dataset.gcps[0]) < 3 else dataset.gcps
        if self.ground_points:
            points = f"{len(self.ground_points[0])} ground control points"
            self.notes.append(f"{self.name} has no geotransform: its tiles are placed by its {points}")
            self._turn(approximate_transform(*self.ground_points))
            return
        if is_usable and self.crs is not None:
            self._turn(transform)
        problem, remedy = "no coordinate system" if is_usable else "no geotransform", "gdal_edit.py can add it"
        if is_usable and self.crs is not None:
            if self._is_of_the_earth(self.crs):
                return
            problem = f"a coordinate system without longitude and latitude ({_name_of(self.crs)})"
            remedy = "gdal_edit.py -a_srs gives it another"
        if not is_usable and (dataset.gcps[0] or dataset.rpcs):
            points = "ground control points" if dataset.gcps[0] else "rational polynomials (RPC)"
            problem, remedy = f"{points} but no geotransform", "gdalwarp puts it on a map"
        self.notes.append(f"{self.name} has {problem}: its tiles are not placed on the earth ({remedy})")

    def _turn(self, transform: Any) -> None:
        """Of what is stored mirrored, the rows are read from the bottom if they run north, else the columns."""
        if transform is None or transform.determinant <= 0:
            return
        self._turned_axis = 1 if transform.e > 0 else 2
        sides = (1, 0, 0, 0, -1, self.height) if self._turned_axis == 1 else (-1, 0, self.width, 0, 1, 0)
        turned = type(transform)(*sides)
        if self.ground_points is None:
            self.transform *= turned
        else:
            self.ground_points = turn_points(self.ground_points[0], turned), self.ground_points[1]
        counted = (
            "rows count from the file's bottom" if self._turned_axis == 1 else "columns count from the file's right"
        )
        self._turned_note = f"{self.name} is stored mirrored: it is turned, and its {counted}"
        self.notes.append(self._turned_note)

    def _is_of_the_earth(self, crs: Any) -> bool:
        """Whether there is a way to longitude and latitude: not from a local grid, or that of another planet."""
        transform = require("rasterio.warp", EXTRA).transform
        with self._gdal("be placed"):
            try:
                transform(crs, "EPSG:4326", [0.0], [0.0])
            except self._rasterio._err.CPLE_NotSupportedError:
                return False
            except self._errors:  # of this point
                pass
        return True

    def _color_table(self) -> np.ndarray | None:
        """uint8 `[values, 4]` of a band of color indices."""
        band = self._chosen[0]
        if len(self._chosen) > 1 or band.color != "palette":
            return None
        try:
            table = self._datasets[band.file].colormap(band.number)
        except ValueError:  # there is none
            return None
        colors = np.zeros((np.iinfo(self.dtype).max + 1 if self.dtype.itemsize < 4 else 65536, 4), np.uint8)
        for value, color in table.items():
            colors[value] = color
        return colors

    def _is_8_bit(self) -> bool:
        if self._palette is not None:
            return True
        tags = [self._datasets[band.file].tags(band.number, ns="IMAGE_STRUCTURE") for band in self._chosen]
        return self.dtype == np.uint8 and all(tag.get("NBITS", "8") == "8" for tag in tags)

    def _has_masks(self) -> bool:
        all_valid = self._rasterio.enums.MaskFlags.all_valid
        flags = [dataset.mask_flag_enums for dataset in self._datasets]
        return any(all_valid not in flags[band.file][band.number - 1] for band in self._chosen)

    # ---- pixels

    def _read(
        self, window: Window, max_side: int | None = None, average: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """Values and whether they are data, both `[bands, H, W]`."""
        from rasterio.enums import Resampling
        from rasterio.windows import Window as Place

        scale = 1.0 if max_side is None else min(1.0, max_side / max(window.width, window.height))
        # The short side of a narrow one stays long enough to be an image [our decision].
        height, width = (min(side, max(MIN_SIDE, round(side * scale))) for side in (window.height, window.width))
        size = height, width
        row = self.height - window.row - window.height if self._turned_axis == 1 else window.row
        column = self.width - window.column - window.width if self._turned_axis == 2 else window.column
        place = Place(column, row, window.width, window.height)  # type: ignore[call-arg]
        # GDAL does not know our own no-data value: it would mix it with data.
        average = average and scale < 1 and self._palette is None and self.nodata is None
        resampling = Resampling.average if average else Resampling.nearest
        values, masks = [], []
        for file, bands in itertools.groupby(self._chosen, lambda band: band.file):  # what one file has together
            indexes = [band.number for band in bands]
            arguments = {"window": place, "out_shape": (len(indexes), *size), "resampling": resampling}
            dataset = self._datasets[file]
            with self._gdal(f"be read at column {window.column}, row {window.row}"):
                values.append(dataset.read(indexes, **arguments))
                masks.append(dataset.read_masks(indexes, **arguments) > 0)
        pixels = np.concatenate(values)
        valid = np.concatenate(masks) & np.isfinite(pixels)
        if self.nodata is not None:
            with np.errstate(over="ignore"):  # of a value that the bands cannot hold
                valid &= pixels != self.nodata
        if self._turned_axis:
            pixels, valid = np.flip(pixels, self._turned_axis), np.flip(valid, self._turned_axis)
        return (pixels, valid) if self._radar is None else self._radar(pixels, valid)

    def _colors(self, values: np.ndarray, valid: np.ndarray) -> np.ndarray:
        """uint8 `[3, H, W]`."""
        if self._palette is not None:
            indices = values[0].clip(0, len(self._palette) - 1)
            colors = self._palette[indices]
            valid[0] &= colors[..., 3] > 0
            return np.moveaxis(colors[..., :3], -1, 0)
        colors = values if self.stretch is None else self.stretch(values)
        colors = np.where(valid, colors, np.uint8(0))
        return np.broadcast_to(colors, (3, *colors.shape[1:]))

    def _make_stretch(self, given: Stretch | None) -> Stretch:
        """The one that is given, or the raster's own; a value that looks like no data is noticed first."""
        samples = self.sample()
        if self._notices_fill and (fill := find_fill(samples)) is not None:
            self.nodata = fill.value
            samples = [kept if len(kept := sample[sample != fill.value]) else np.zeros(1) for sample in samples]
            what = f"{fill.value:g} in {fill.share:.0%} of its pixels"
            rest = f"far outside the rest ({fill.low:.4g} to {fill.high:.4g})"
            remedy = "taken as no data (--nodata nan takes it as a value)"
            self.notes.append(f"{self.name} holds {what}, {rest}: {remedy}")
        if given is None:
            return percentile_stretch(samples, self.dtype)
        if len(given.low) != len(samples):
            raise RSMoEError(
                f"{self.name} is shown by {len(samples)} bands, and the stretch is of {len(given.low)}: choose bands "
                "with --bands"
            )
        return given

    def sample(self) -> list[np.ndarray]:
        """Valid values of each chosen band, from all over the scene."""
        has_overviews = all(self._datasets[band.file].overviews(band.number) for band in self._chosen)
        if not has_overviews and self.width * self.height > _MAX_OVERVIEW_PIXELS:
            sample = self._flat([self._read(window) for window in self._sample_windows()])
            if all(len(values) for values in sample):
                return sample
        sample = self._flat([self._read(Window(0, 0, self.width, self.height), _SAMPLE_SIDE)])
        if not any(len(values) for values in sample):
            raise no_data(self.name)
        return [values if len(values) else np.zeros(1) for values in sample]

    def _sample_windows(self) -> Iterator[Window]:
        width, height = (min(_SAMPLE_WINDOW_SIDE, side) for side in (self.width, self.height))
        centers = (np.arange(_NUM_SAMPLE_WINDOWS) + 0.5) / _NUM_SAMPLE_WINDOWS
        for row in (centers * self.height - height / 2).clip(0, self.height - height).astype(int):
            for column in (centers * self.width - width / 2).clip(0, self.width - width).astype(int):
                yield Window(int(column), int(row), width, height)

    @staticmethod
    def _flat(windows: list[tuple[np.ndarray, np.ndarray]]) -> list[np.ndarray]:
        num_bands = len(windows[0][0])
        return [np.concatenate([values[band][valid[band]] for values, valid in windows]) for band in range(num_bands)]

    @contextmanager
    def _gdal(self, doing: str) -> Iterator[None]:
        """GDAL with bounded memory; its errors as ours, its warnings collected and not printed."""
        options = {"GDAL_HTTP_TIMEOUT": "60", "GDAL_HTTP_MAX_RETRY": "3"}
        if self._alone or any(map(is_remote, self.paths)):
            options["GDAL_DISABLE_READDIR_ON_OPEN"] = "EMPTY_DIR"  # no listing of a whole bucket
        if not self._remote and not any(map(is_remote, self.paths)):
            options |= OFFLINE
        with self._warnings, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a missing geotransform: it has its own note
            try:
                with self._rasterio.Env(**options):
                    yield
            except RSMoEError:
                raise
            except self._errors as error:
                raise self._cannot(doing, error) from error

    def _cannot(self, doing: str, error: Exception) -> RSMoEError:
        reason = error.__cause__ or error
        text = " ".join((str(reason) or type(reason).__name__).split())
        if any(map(is_remote, self.paths)):
            remedy = "check the name, the connection and your access"
        else:
            remedy = "it is truncated or damaged, or its header promises more than it holds: copy or download it again"
        return RSMoEError(f"{self.name} cannot {doing} ({text}): {remedy}")


def no_data(name: str) -> RSMoEError:
    """The error of a scene without data."""
    return RSMoEError(f"{name} holds no data: every pixel is NaN, infinite, masked or the declared no-data value")


def _name_of(crs: Any) -> str:
    name = re.search(r'"([^"]*)"', crs.to_wkt())
    return name[1] if name else "unnamed"


def _damaged(path: str, reason: str) -> RSMoEError:
    return RSMoEError(f"{path} is truncated or damaged ({reason}): copy or download it again")


class _Warnings(logging.Handler):
    """In a `with` block: GDAL's warnings, the first 20, in a list instead of on stderr."""

    _logger = logging.getLogger("rasterio")

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def __enter__(self) -> None:
        self._propagates, self._logger.propagate = self._logger.propagate, False
        self._logger.addHandler(self)

    def __exit__(self, *exception: object) -> None:
        self._logger.removeHandler(self)
        self._logger.propagate = self._propagates

    def emit(self, record: logging.LogRecord) -> None:
        if len(self.texts) < 20:
            self.texts.append(" ".join(record.getMessage().split()))
