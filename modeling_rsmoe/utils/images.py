"""Images from wherever they lie: files, URLs, base64, bytes; rasters, and PNGs whose 16-bit colors Pillow would cut.

A `PIL.Image` of mode "RGB" comes out, or an `RSMoEError` that names the image, what is wrong with it and what to do.
How pixels become 8-bit RGB stands in `images_rsmoe`.

[our decision] A TIFF or JPEG 2000 of other than 8 bits, or that Pillow does not know, is a raster, and is read and
stretched as a scene is (`rasters`), which needs rasterio. So is every file for which bands or a no-data value are
chosen.
"""

import base64
import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from io import BytesIO
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from ..errors_rsmoe import RSMoEError, first_line
from ..images_rsmoe import (
    FORMATS,
    URL_TIMEOUT_SECONDS,
    Box,
    check_size,
    decode,
    is_wide,
    map_images,
    open_header,
    pillow_errors,
    raw_mode,
    stretch,
    to_rgb,
)
from .files import check_input
from .rasters.image import is_raster, is_raster_file, read_raster
from .rasters.options import AS_IN_THE_FILE, RasterOptions
from .tiff import TIFF_MAGIC


MAX_URL_BYTES = 512 * 2**20
_NUM_BANDS_TAG = 277  # of a TIFF

ImageInput = str | os.PathLike | bytes | BytesIO | Image.Image | np.ndarray | torch.Tensor


def read_image(
    image: ImageInput, name: str | None = None, raster_options: RasterOptions = AS_IN_THE_FILE
) -> Image.Image:
    """One image, whatever it is given as, as an upright RGB image of 8 bits a channel.

    Args:
        image: a path or `file://` URL, an `http(s)://` URL, a `data:image/...` URL or bare base64 string (as
            transformers' `load_image` takes them), a file's bytes, or what `images_rsmoe.to_rgb` takes.
        name: what errors call an image that has no path of its own.
        raster_options: bands, no-data value and stretch of rasters; of what is no file they say nothing.

    Returns:
        The image; of a raster that holds a surprise, `info["notes"]` says so.

    Raises:
        RSMoEError: missing, empty, truncated, not an image, a raster while rasterio is not installed, smaller than
            `MIN_SIDE` pixels on a side, over Pillow's limit against decompression bombs (it is not decoded then), or
            an array of another shape or dtype.
    """
    if isinstance(image, (str, os.PathLike)):
        return _read_source(*_locate(image, name), raster_options)
    if isinstance(image, (bytes, BytesIO)):
        source = BytesIO(image) if isinstance(image, bytes) else image
        return _read_source(source, name or f"the image of {len(source.getbuffer())} bytes", raster_options)
    if isinstance(image, Image.Image) and (is_wide(image) or is_raster(image)):
        # Not decoded yet: Pillow would keep the upper 8 bits only. Its own bytes can still be read in full.
        shown = name or f"the PIL image ({image.mode}, {image.width} x {image.height})"
        return _read_source(_bytes_behind(image, shown), shown, raster_options)
    return to_rgb(image, name)


def is_chip(path: str | os.PathLike, options: RasterOptions = AS_IN_THE_FILE) -> bool:
    """Whether a file is no ordinary 8-bit image, by its header: 16 bits, floats, bands that Pillow does not know, or,
    where bands are chosen, more than three in a TIFF. What is no image at all is no chip."""
    try:
        with _open(os.fspath(path), _shorten(os.fspath(path))) as opened:
            if opened is None or is_raster(opened) or is_wide(opened) or opened.mode[0] in "IF":
                return True
            num_bands = getattr(opened, "tag_v2", {}).get(_NUM_BANDS_TAG, 1)
            return options.bands is not None and num_bands > 3
    except (RSMoEError, OSError):
        return False


def read_images(images: Any) -> Any:
    """`read_image` for each image of a batch; lists, and lists of lists, keep their structure."""
    return map_images(read_image, images)


# ---- where it comes from


def _locate(image: str | os.PathLike, name: str | None) -> tuple[str | BytesIO, str]:
    """The file's path, or the bytes that a URL or base64 string stands for, and the name for errors."""
    text = os.fspath(image)
    if isinstance(text, bytes):
        text = os.fsdecode(text)
    if not text:
        raise RSMoEError(f"the path of {name or 'the image'} is empty: give the image's file or URL")
    if isinstance(image, str):
        if text.startswith(("http://", "https://")):
            return BytesIO(download(text)), _shorten(text)
        if text.startswith("file://"):
            url = urlsplit(text)
            if url.netloc not in ("", "localhost"):
                remedy = "use file:///path or an http(s) URL"
                raise RSMoEError(f"{_shorten(text)} is on another machine ({url.netloc}): {remedy}")
            return url2pathname(url.path), _shorten(text)
        if text.startswith("data:"):
            return BytesIO(bytes_of_data_url(text)), name or f"the data URL {_shorten(text, 40)!r}"
        if not os.path.lexists(text) and (data := _image_in_base64(text)) is not None:
            return BytesIO(data), name or f"the base64 string {_shorten(text, 40)!r}"
    return text, _shorten(text)


def _read_source(source: str | BytesIO, shown: str, options: RasterOptions) -> Image.Image:
    if not isinstance(source, BytesIO):
        check_input(source, "an image", shown)
    elif not source.getvalue():
        raise RSMoEError(f"{shown} is empty (0 bytes): copy or download it again")
    read = functools.partial(read_raster, source, shown, options)
    if options.bands is not None or options.nodata is not None:
        return read()
    with _open(source, shown) as opened:
        if opened is not None and not is_raster(opened):
            return _read_wide_color(opened, source, shown) if is_wide(opened) else to_rgb(opened, shown)
    return read()


def download(url: str) -> bytes:
    """What an `http(s)://` URL gives.

    Raises:
        RSMoEError: no connection, no such page, or more than `MAX_URL_BYTES`.
    """
    # huggingface_hub comes with transformers, and transformers' own `load_image` uses this client
    from huggingface_hub.utils import httpx

    shown, received = _shorten(url), BytesIO()
    try:
        with httpx.stream("GET", url, timeout=URL_TIMEOUT_SECONDS, follow_redirects=True) as response:
            response.raise_for_status()
            for chunk in response.iter_bytes():
                received.write(chunk)
                if received.tell() > MAX_URL_BYTES:
                    raise RSMoEError(f"{shown} has more than {MAX_URL_BYTES >> 20} MiB: download it and crop it first")
    except RSMoEError:
        raise
    except Exception as error:  # the client's errors have no common base: HTTP status, network, and malformed URLs
        reason = first_line(error)
        raise RSMoEError(f"{shown} cannot be downloaded ({reason}): check the URL and the network") from error
    return received.getvalue()


def bytes_of_data_url(url: str) -> bytes:
    """What a `data:image/...;base64,` URL holds, not looked at; an [`RSMoEError`] for any other URL."""
    header, comma, payload = url.partition(",")
    if not header.startswith("data:image/") or not header.endswith(";base64") or not comma:
        raise RSMoEError(f"the data URL {_shorten(url, 40)!r} is not of the form data:image/png;base64,...")
    try:
        return base64.b64decode("".join(payload.split()), validate=True)
    except ValueError as error:  # also of letters that are not ASCII
        raise RSMoEError(
            f"the data URL {_shorten(url, 40)!r} is not valid base64 ({error}): encode it again"
        ) from error


def _image_in_base64(text: str) -> bytes | None:
    """The bytes of a bare base64 string if they begin as an image does; a mistyped path is none."""
    try:
        data = base64.b64decode("".join(text.split()), validate=True)
        open_header(BytesIO(data)).close()
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        return data  # an image, to be refused by its size
    except Exception:
        return None
    return data


def _bytes_behind(image: Any, shown: str) -> BytesIO:
    """The whole file that an opened, not yet decoded PIL image reads from; the image stays usable."""
    file = image.fp
    if file is None or file.closed:
        raise RSMoEError(f"the file behind {shown} is closed: give its path, or open it again")
    if isinstance(file, BytesIO):
        return BytesIO(file.getvalue())  # no copy
    position = file.tell()
    file.seek(0)
    data = file.read()
    file.seek(position)
    return BytesIO(data)


# ---- decoding


@contextmanager
def _open(source: str | BytesIO, shown: str) -> Iterator[Any]:
    """The image of which the header is read; None for a raster that Pillow does not know."""
    with pillow_errors(shown):
        try:
            opened = open_header(source)
        except UnidentifiedImageError as error:
            is_known = _magic(source) in TIFF_MAGIC or (isinstance(source, str) and is_raster_file(source))
            if not is_known:
                problem = f"is not an image that can be read here: give one of {', '.join(FORMATS)}"
                raise RSMoEError(f"{shown} {problem}") from error
            opened = None
    with nullcontext() if opened is None else opened:
        yield opened


def _read_wide_color(opened: Any, source: str | BytesIO, shown: str) -> Image.Image:
    """A PNG of several bands of 16 bits: Pillow decodes the upper 8 bits of each, and in the other byte order the
    lower 8."""
    check_size(opened.width, opened.height, shown)
    kind = raw_mode(opened).partition(";16")[0]
    if kind == "LA":  # four bytes a pixel, and Pillow knows no other byte order: take them as they are
        pixels = decode(_with_raw_mode(opened, "RGBA"), shown)

        def read(box: Box) -> np.ndarray:
            four = np.asarray(pixels.crop(box)).astype(np.uint16)  # [h, W, 4]
            return four[..., 0::2] << 8 | four[..., 1::2]  # [h, W, 2]
    else:
        pixels = decode(opened, shown)
        with _open(source, shown) as again:
            lower = decode(_with_raw_mode(again, f"{kind};16L"), shown)

        def read(box: Box) -> np.ndarray:  # [h, W, 3 or 4]
            return np.asarray(pixels.crop(box)).astype(np.uint16) << 8 | np.asarray(lower.crop(box))

    if kind == "RGB":
        return stretch(read, pixels.size, None, shown)
    return stretch(
        lambda box: read(box)[..., :-1],
        pixels.size,
        None,
        shown,
        alpha=lambda box: (read(box)[..., -1] >> 8).astype(np.uint8),
    )


def _with_raw_mode(image: Any, mode: str) -> Image.Image:
    image.tile = [
        tile._replace(args=(mode, *tile.args[1:]) if isinstance(tile.args, tuple) else mode) for tile in image.tile
    ]
    return image


# ---- wording


def _magic(source: str | BytesIO) -> bytes:
    if isinstance(source, BytesIO):
        return source.getvalue()[:4]
    with open(source, "rb") as file:
        return file.read(4)


def _shorten(text: str, length: int = 160) -> str:
    """A printable name for errors: file names may hold bytes that no terminal can show."""
    text = os.fsencode(text).decode("utf-8", "replace")
    return text if len(text) <= length else f"{text[: length - 3]}..."
