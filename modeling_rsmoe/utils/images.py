"""Images from wherever they lie: files, URLs, base64, bytes, and 16-bit colors that Pillow would cut to 8.

A `PIL.Image` of mode "RGB" comes out, or an `RSMoEError` that names the image, what is wrong with it and what to do.
How pixels become 8-bit RGB stands in `images_rsmoe`. Nothing here knows of rasters, tiles or coordinates.
"""

import base64
import os
import sys
from io import BytesIO
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from ..errors_rsmoe import RSMoEError, first_line
from ..images_rsmoe import (
    BANDS_REMEDY,
    FORMATS,
    URL_TIMEOUT_SECONDS,
    Box,
    check_size,
    decode,
    is_wide,
    map_images,
    missing_value,
    open_header,
    pillow_errors,
    raw_mode,
    stretch,
    to_rgb,
)
from .files import check_input
from .tiff import TIFF_MAGIC


MAX_URL_BYTES = 512 * 2**20

_PLANAR_TAG = 284  # 2: the bands are stored one after the other

ImageInput = str | os.PathLike | bytes | Image.Image | np.ndarray | torch.Tensor


def read_image(image: ImageInput, name: str | None = None) -> Image.Image:
    """One image, whatever it is given as, as an upright RGB image of 8 bits a channel.

    Args:
        image: a path or `file://` URL, an `http(s)://` URL, a `data:image/...` URL or bare base64 string (as
            transformers' `load_image` takes them), a file's bytes, or what `images_rsmoe.to_rgb` takes.
        name: what errors call an image that has no path of its own.

    Raises:
        RSMoEError: missing, empty, truncated, not an image, smaller than `MIN_SIDE` pixels on a side, over Pillow's
            limit against decompression bombs (it is not decoded then), or an array of another shape or dtype.
    """
    if isinstance(image, (str, os.PathLike)):
        return _read_source(*_locate(image, name))
    if isinstance(image, bytes):
        return _read_source(BytesIO(image), name or f"the image of {len(image)} bytes")
    if isinstance(image, Image.Image) and is_wide(image):
        # Not decoded yet: Pillow would keep the upper 8 bits only. Its own bytes can still be read in full.
        shown = name or f"the PIL image ({image.mode}, {image.width} x {image.height})"
        return _read_source(_bytes_behind(image, shown), shown)
    return to_rgb(image, name)


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


def _read_source(source: str | BytesIO, shown: str) -> Image.Image:
    if not isinstance(source, BytesIO):
        check_input(source, "an image", shown)
    elif not source.getvalue():
        raise RSMoEError(f"{shown} is empty (0 bytes): copy or download it again")
    with _open(source, shown) as opened:
        return _read_wide_color(opened, source, shown) if is_wide(opened) else to_rgb(opened, shown)


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


def _open(source: str | BytesIO, shown: str) -> Any:
    """Reads the header only."""
    with pillow_errors(shown):
        try:
            return open_header(source)
        except UnidentifiedImageError as error:
            problem = f"is not an image that can be read here: give one of {', '.join(FORMATS)}"
            if _magic(source) in TIFF_MAGIC:
                problem = f"is a TIFF with bands or numbers that Pillow cannot read: {BANDS_REMEDY}"
            raise RSMoEError(f"{shown} {problem}") from error


def _read_wide_color(opened: Any, source: str | BytesIO, shown: str) -> Image.Image:
    """Several bands of 16 bits: Pillow decodes the upper 8 bits of each, and in the other byte order the lower 8."""
    check_size(opened.width, opened.height, shown)
    layout = raw_mode(opened)
    kind, _, suffix = layout.partition(";16")
    by_band = getattr(opened, "tag_v2", {}).get(_PLANAR_TAG) == 2
    if by_band or kind not in ("RGB", "RGBX", "RGBA", "LA") or suffix not in ("L", "B", "N"):
        layout = "one band after the other" if by_band else layout
        raise RSMoEError(f"{shown} has 16-bit colors in a layout that Pillow misreads ({layout}): {BANDS_REMEDY}")
    missing = missing_value(opened)
    if kind == "LA":  # four bytes a pixel, and Pillow knows no other byte order: take them as they are
        pixels = decode(_with_raw_mode(opened, "RGBA"), shown)

        def read(box: Box) -> np.ndarray:
            four = np.asarray(pixels.crop(box)).astype(np.uint16)  # [h, W, 4]
            return four[..., 0::2] << 8 | four[..., 1::2]  # [h, W, 2]
    else:
        other = "B" if suffix == "L" or (suffix == "N" and sys.byteorder == "little") else "L"
        pixels = decode(opened, shown)
        with _open(source, shown) as again:
            lower = decode(_with_raw_mode(again, f"{kind};16{other}"), shown)

        def read(box: Box) -> np.ndarray:  # [h, W, 3 or 4]
            return np.asarray(pixels.crop(box)).astype(np.uint16) << 8 | np.asarray(lower.crop(box))

    if kind == "RGB":
        return stretch(read, pixels.size, missing, shown)
    return stretch(
        lambda box: read(box)[..., :-1],
        pixels.size,
        missing,
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
