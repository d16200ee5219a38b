"""Images of any kind of pixels as 8-bit RGB, for the processor.

How other kinds of pixels become 8-bit RGB, all [our decision]:

- palette, gray, 1-bit, CMYK, HSV, YCbCr: as Pillow converts them; the first page or frame of a file with several.
- alpha (also a palette's or PNG's transparent color): laid over black, the usual color of "no data" in aerial images.
- 16-bit and 32-bit integers, and PIL images of floats (mode "F"): stretched linearly so that the smallest finite
  value of the image becomes 0 and the largest 255, all bands together, so that the hues stay. NaN, infinite values and
  a GeoTIFF's declared no-data value become 0 and do not count for the range. An image of one value has no range:
  integers are then scaled by 65535, floats by 1.
- arrays and tensors of floats: 0 to 1, the habit of numpy and torch; values outside are refused, because they are
  usually an image that is normalized already, or one of 0 to 255.
- EXIF orientation is applied.

Nothing here resizes or normalizes (that is the image processor's work). Pixels are converted strip by strip: beside
what Pillow's decoder takes, at most 8 bytes a pixel, of which the RGB image takes 4.
"""

import base64
import math
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from io import BytesIO
from typing import Any

import numpy as np
import torch
from huggingface_hub.utils import httpx  # as transformers' `load_image` does
from PIL import ExifTags, Image, ImageOps

from .errors_rsmoe import RSMoEError, first_line


# An image of fewer pixels a side shows nothing that could be described. It also makes the place of an array's channels
# unambiguous: an axis of 1 to 4 cannot be a side. [our decision]
MIN_SIDE = 8

# What Pillow decodes by itself or with well-kept libraries. Not EPS: that starts Ghostscript. [our decision]
FORMATS = ("PNG", "JPEG", "TIFF", "WEBP", "GIF", "BMP", "JPEG2000", "PPM")

URL_TIMEOUT_SECONDS = 30.0
_STRIP_PIXELS = 2**16
_MAX_SCANS = 100  # of a progressive JPEG: libtiff's and GDAL's limit, too; encoders write about 10
_MAX_READS = 4096  # of a header; one with a color profile, thumbnails and many tags takes some hundreds
_MAX_CHUNKS = 256  # of a PNG, beside those of pixels and frames
_MAX_EXIF_BYTES = 2**16  # what a JPEG's segment holds
_MAX_TILE_PIXELS = 2048 * 2048  # of a tile in a TIFF, or what its image has
_JPEG_MARKER = re.compile(rb"\xff([^\x00\x01\xff\xd0-\xd7])")
_FLOAT_TOLERANCE = 0.01  # a float image resampled by a cubic filter oversteps 0..1 a little
_GDAL_NODATA_TAG = 42113
_BITS_PER_SAMPLE_TAG = 258
_TILE_WIDTH_TAG, _TILE_LENGTH_TAG = 322, 323
Box = tuple[int, int, int, int]  # left, upper, right, lower, in pixels
BANDS_REMEDY = (
    "read three bands with rasterio and give the array: rasterio.open(path).read([1, 2, 3]), "
    "as uint8, or as uint16 to be stretched by its range"
)


def map_images(convert: Any, images: Any, place: str = "images") -> Any:
    """`convert(image, name)` for one image or each of nested lists, which keep their structure; an array or tensor of
    four axes is a list. Errors name an image without a path by its place: `images[1][0]`."""
    is_batch = isinstance(images, (np.ndarray, torch.Tensor)) and images.ndim == 4
    if is_batch or isinstance(images, (list, tuple)):
        return [map_images(convert, image, f"{place}[{index}]") for index, image in enumerate(images)]
    return convert(images, None if place == "images" else place)


def to_rgb(image: Any, name: str | None = None) -> Image.Image:
    """One image as an upright RGB image of 8 bits a channel.

    Args:
        image: a path, URL or base64 string, a PIL image, or an array or tensor `[H, W]`, `[H, W, C]` or `[C, H, W]`
            with C of 1 to 4 (2 and 4: the last is alpha), of bool, uint8, uint16, int16, int32, uint32 or float (0 to
            1).
        name: what errors call it.

    Raises:
        RSMoEError: not an image, damaged, too small, or of pixels that cannot be converted.
    """
    if isinstance(image, (str, os.PathLike)):
        return _load(os.fspath(image))
    if isinstance(image, Image.Image):
        shown = name or f"the PIL image ({image.mode}, {image.width} x {image.height})"
        if is_wide(image):
            raise RSMoEError(f"{shown} has colors of more than 8 bits, of which Pillow reads 8: {BANDS_REMEDY}")
        check_size(image.width, image.height, shown)
        return _convert_pixels(decode(image, shown), missing_value(image), shown)
    if isinstance(image, torch.Tensor):
        # numpy has no bfloat16, and half precision is no better as a number of 0 to 1
        tensor = image.detach().cpu()
        array = (tensor.float() if tensor.is_floating_point() else tensor).numpy()
        return _from_array(array, name or f"the tensor of shape {list(image.shape)}")
    if isinstance(image, np.ndarray):
        return _from_array(image, name or f"the array of shape {list(image.shape)}")
    raise RSMoEError(
        f"{name or 'the image'} is of type {type(image).__name__}: "
        "give a path, a URL, a base64 string, a PIL image, a numpy array or a torch tensor"
    )


def open_header(source: str | os.PathLike | BytesIO) -> Image.Image:
    """The image in a file of one of the `FORMATS`, of which only the header is read. Pillow's errors, and ValueError
    for metadata that no image needs."""
    with nullcontext(source) if isinstance(source, BytesIO) else open(source, "rb") as file:
        _check_chunks(file)
        Image.open(HeaderReader(file), formats=FORMATS)
    return Image.open(source, formats=FORMATS)


class HeaderReader:
    """A file that gives no more than a header takes: Pillow's time is quadratic in a header's parts, and each tag of a
    TIFF may copy the whole file.

    Args:
        file: open and binary.
    """

    def __init__(self, file: Any):
        self._file, self._reads_left, self._exif_left = file, _MAX_READS, _MAX_EXIF_BYTES
        self._bytes_left = 2 * file.seek(0, os.SEEK_END) + _MAX_EXIF_BYTES
        file.seek(0)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def read(self, size: int = -1) -> Any:
        """Raises ValueError when too much was read."""
        data = self._file.read(size)
        self._reads_left, self._bytes_left = self._reads_left - 1, self._bytes_left - len(data)
        self._exif_left -= len(data) * data.startswith(b"Exif\0\0")  # Pillow joins those of a JPEG
        if min(self._reads_left, self._bytes_left, self._exif_left) < 0:
            raise ValueError("more metadata than an image needs")
        return data


def _check_chunks(file: Any) -> None:
    """1 kB of a PNG's metadata may unpack to 1 MB, before the pixels or after them: 10 MB are a minute of work."""
    file.seek(0)
    place, num_chunks = 8, 0
    is_png = file.read(8) == b"\x89PNG\r\n\x1a\n"
    while is_png and len(head := file.read(8)) == 8 and head[4:] != b"IEND":
        num_chunks += head[4:] not in (b"IDAT", b"fdAT", b"fcTL")
        if num_chunks > _MAX_CHUNKS:
            raise ValueError(f"more than {_MAX_CHUNKS} chunks of metadata")
        place += 12 + int.from_bytes(head[:4])
        file.seek(place)
    file.seek(0)


def _load(source: str) -> Image.Image:
    shown = source if len(source) <= 160 else f"{source[:157]}..."
    try:
        with open_header(source if os.path.isfile(source) else BytesIO(_bytes_of(source))) as image:
            return to_rgb(image, shown)
    except RSMoEError:
        raise
    except Exception as error:  # Pillow's and the network's errors have no common base
        raise RSMoEError(f"{shown} cannot be read as an image ({first_line(error)}): check the path or URL") from error


def _bytes_of(source: str) -> bytes:
    """What a URL or a base64 string holds, as transformers' `load_image` reads them."""
    if source.startswith(("http://", "https://")):
        answer = httpx.get(source, timeout=URL_TIMEOUT_SECONDS, follow_redirects=True)
        return answer.raise_for_status().content
    return base64.decodebytes(source.rpartition(",")[2].encode())


@contextmanager
def pillow_errors(shown: str) -> Iterator[None]:
    """Within: what Pillow raises while it opens or decodes a file becomes an `RSMoEError`."""
    try:
        yield
    except RSMoEError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _over_the_limit(shown, first_line(error)) from error
    except MemoryError as error:
        raise RSMoEError(f"{shown} does not fit into memory: crop it or cut it into tiles") from error
    except Exception as error:  # a damaged file makes Pillow raise OSError, SyntaxError, struct.error, IndexError...
        reason = first_line(error)
        raise RSMoEError(f"{shown} is truncated or damaged ({reason}): copy or download it again") from error


def decode(image: Image.Image, shown: str) -> Image.Image:
    """All pixels of an opened image, upright, in its mode."""
    if image.format == "EPS":  # opened elsewhere
        raise RSMoEError(f"{shown} is an EPS, which another program would have to draw: save it as a PNG first")
    file = getattr(image, "fp", None)  # None where it is decoded already
    if file is not None and image.format in ("JPEG", "MPO"):
        _check_scans(file, shown)
    _check_tiles(image, shown)
    with pillow_errors(shown):
        image.load()
    exif = next((image.info[key] for key in ("exif", "Raw profile type exif") if key in image.info), b"")
    if len(exif) > _MAX_EXIF_BYTES * (2 if isinstance(exif, str) else 1):  # the text is hexadecimal
        raise RSMoEError(f"{shown} has EXIF metadata of {len(exif)} bytes: save it again without")
    try:
        is_upright = image.getexif().get(ExifTags.Base.Orientation, 1) == 1
        return image if is_upright else ImageOps.exif_transpose(image)
    except Exception:
        return image


def _check_scans(file: Any, shown: str) -> None:
    """A scan of some 30 bytes goes through all pixels: a JPEG of 100 kB can be hours of work."""
    position = file.tell()
    file.seek(0)
    data = file.read()
    file.seek(position)
    num_scans, place = 0, 2
    while (marker := _JPEG_MARKER.search(data, place)) and marker[1] != b"\xd9":  # the end of the image
        place = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2])
        num_scans += marker[1] == b"\xda"
        if num_scans > _MAX_SCANS:
            raise RSMoEError(f"{shown} is a JPEG of more than {_MAX_SCANS} scans: save it again as a plain JPEG")


def _check_tiles(image: Any, shown: str) -> None:
    """Pillow makes room for a whole tile, however small the image is."""
    tags = getattr(image, "tag_v2", {})
    width, height = tags.get(_TILE_WIDTH_TAG, 0), tags.get(_TILE_LENGTH_TAG, 0)
    if width * height > max(_MAX_TILE_PIXELS, (image.width + 15) * (image.height + 15)):
        size = f"{image.width} x {image.height} pixels in tiles of {width} x {height}"
        raise RSMoEError(f"{shown} is a TIFF of {size}: save it again with smaller tiles")


def is_wide(image: Image.Image) -> bool:
    """Whether Pillow would cut colors of 16 bits to 8, or misread them, in an image that it has not decoded yet."""
    if not getattr(image, "tile", None) or image.mode not in ("RGB", "RGBA", "RGBX", "CMYK", "LA"):
        return False
    bits = getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE_TAG, 8)
    return ";16" in raw_mode(image) or max(bits if isinstance(bits, tuple) else (bits,)) > 8


def raw_mode(image: Any) -> str:
    """How the first tile's bytes are laid out, in Pillow's words: "RGB;16B"."""
    arguments = image.tile[0].args
    return str(arguments[0] if isinstance(arguments, tuple) and arguments else arguments)


def missing_value(image: Image.Image) -> float | None:
    """The no-data value that a GeoTIFF declares."""
    declared = getattr(image, "tag_v2", {}).get(_GDAL_NODATA_TAG)
    try:
        return None if declared is None else float(str(declared).strip("\0 "))
    except ValueError:
        return None


def check_size(width: int, height: int, shown: str) -> None:
    """Raise RSMoEError for an image over Pillow's limit or under `MIN_SIDE` pixels on a side."""
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and width * height > limit:
        raise _over_the_limit(shown, f"{width} x {height} pixels, limit {limit:.0f}")
    if min(width, height) < MIN_SIDE:
        raise RSMoEError(
            f"{shown} has {width} x {height} pixels, too few to describe: "
            f"give an image of at least {MIN_SIDE} x {MIN_SIDE}"
        )


def _over_the_limit(shown: str, reason: str) -> RSMoEError:
    return RSMoEError(
        f"{shown} is over Pillow's limit against decompression bombs ({reason}): crop it, cut it into tiles, "
        "or raise PIL.Image.MAX_IMAGE_PIXELS if you trust it"
    )


# ---- pixels to 8-bit RGB


def _convert_pixels(image: Image.Image, missing: float | None, shown: str) -> Image.Image:
    """A decoded image of any mode as RGB; `missing` is its no-data value."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return stretch(lambda box: np.asarray(image.crop(box))[..., None], image.size, missing, shown)

    def convert(box: Box) -> Image.Image:
        strip = image.crop(box)
        if strip.has_transparency_data:
            strip = strip.convert("RGBA")
            strip = Image.alpha_composite(Image.new("RGBA", strip.size, (0, 0, 0, 255)), strip)
        return strip.convert("RGB")

    try:
        return _by_strips(image.size, convert)
    except ValueError as error:  # Pillow converts its rarer modes only to some others
        raise RSMoEError(f"{shown} has pixels of mode {image.mode!r}: convert it to RGB first") from error


def _from_array(array: np.ndarray, shown: str) -> Image.Image:
    pixels = _channels_last(array, shown)
    height, width, channels = pixels.shape
    check_size(width, height, shown)
    has_alpha = channels in (2, 4)
    kind = pixels.dtype
    if kind == np.bool_:
        pixels = pixels.astype(np.uint8) * np.uint8(255)
    elif np.issubdtype(kind, np.floating):
        pixels = _from_unit_range(pixels, shown)
    elif kind in (np.uint16, np.int16, np.int32, np.uint32):
        if has_alpha:
            # the fourth band of a raster is near-infrared more often than alpha
            raise RSMoEError(
                f"{shown} has {channels} channels of {kind}: choose one band, or three in the order R, G, B"
            )
        return stretch(lambda box: pixels[box[1] : box[3]], (width, height), None, shown)
    elif kind != np.uint8:
        raise RSMoEError(
            f"{shown} has dtype {kind}, whose range is not known: give uint8 (0 to 255), float (0 to 1), "
            "or uint16, int16, int32 or uint32 (stretched by the range of their values)"
        )
    return _assemble(pixels[..., :-1], pixels[..., -1]) if has_alpha else _assemble(pixels)


def _channels_last(array: np.ndarray, shown: str) -> np.ndarray:
    if array.ndim == 2:
        return array[..., None]
    if array.ndim == 3 and 1 <= array.shape[-1] <= 4:
        return array
    if array.ndim == 3 and 1 <= array.shape[0] <= 4:
        return np.moveaxis(array, 0, -1)
    raise RSMoEError(
        f"{shown} (array shape {list(array.shape)}) is not an image: give [H, W], [H, W, C] or [C, H, W] with C of "
        "1 to 4; of more bands choose three; give several images as a list"
    )


def _from_unit_range(pixels: np.ndarray, shown: str) -> np.ndarray:
    """Floats of 0 to 1 to uint8; NaN and infinite values are missing pixels, 0."""
    finite = np.isfinite(pixels)
    low, high = (pixels[finite].min(), pixels[finite].max()) if finite.any() else (np.nan, np.nan)
    if not (low >= -_FLOAT_TOLERANCE and high <= 1 + _FLOAT_TOLERANCE):
        raise RSMoEError(
            f"{shown} holds floats from {low:.4g} to {high:.4g}: floats must be 0 to 1 (divide 0 to 255 by 255, undo "
            "a normalization), or make it a uint16 array, which is stretched by its range"
        )
    return np.rint(np.where(finite, pixels, 0).clip(0, 1) * 255).astype(np.uint8)


def stretch(
    read: Callable[[Box], np.ndarray],
    size: tuple[int, int],
    missing: float | None,
    shown: str,
    alpha: Callable[[Box], np.ndarray] | None = None,
) -> Image.Image:
    """Numbers of any kind as RGB by their joint smallest and largest value; missing ones become 0.

    Args:
        read: gives the numbers of a box, `[h, W, 1 or 3]`; it is called twice for every strip.
        size: width and height, in pixels.
        missing: the no-data value.
        shown: what errors call the image.
        alpha: gives uint8 `[h, W]` of a box.
    """
    low, high = math.inf, -math.inf
    for box in _strips(size):
        values = read(box)
        if (values := values[_is_data(values, missing)]).size:
            # float64: int32 does not fit float32, and the difference of two float32 can overflow
            low, high = min(low, float(values.min())), max(high, float(values.max()))
    if low > high:
        raise RSMoEError(f"{shown} holds no data: every pixel is NaN, infinite or the declared no-data value")

    def convert(box: Box) -> Image.Image:
        values = read(box)
        if high > low:
            scaled = (values.astype(np.float64) - low) / (high - low)
        else:
            scaled = values / (1.0 if np.issubdtype(values.dtype, np.floating) else 65535.0)
        colors = np.rint(np.where(_is_data(values, missing), scaled, 0).clip(0, 1) * 255).astype(np.uint8)
        return _assemble(colors, None if alpha is None else alpha(box))

    return _by_strips(size, convert)


def _is_data(values: np.ndarray, missing: float | None) -> np.ndarray:
    return np.isfinite(values) if missing is None else np.isfinite(values) & (values != missing)


def _strips(size: tuple[int, int]) -> Iterator[Box]:
    width, height = size
    rows = max(1, _STRIP_PIXELS // width)
    for top in range(0, height, rows):
        yield 0, top, width, min(top + rows, height)


def _by_strips(size: tuple[int, int], convert: Callable[[Box], Image.Image]) -> Image.Image:
    """An RGB image, made strip by strip."""
    image = Image.new("RGB", size)
    for box in _strips(size):
        image.paste(convert(box), box)
    return image


def _assemble(colors: np.ndarray, alpha: np.ndarray | None = None) -> Image.Image:
    """uint8 colors `[H, W, 1 or 3]`, laid over black where alpha `[H, W]` (uint8) says so."""
    if alpha is not None:
        colors = np.rint(colors * (alpha[..., None] / np.float32(255))).astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(np.broadcast_to(colors, (*colors.shape[:2], 3))))
