"""From whatever a person calls an image to one upright 8-bit RGB picture.

A path, a URL, a base64 string, a PIL image, a numpy array or a torch tensor goes in; a `PIL.Image` of mode "RGB" comes
out, or an `RSMoEError` that names the image, what is wrong with it and what to do. Nothing here resizes or normalizes
(that is the image processor's work), and nothing knows of rasters, tiles or coordinates.

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
"""

import base64
import binascii
import os
import sys
from io import BytesIO
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import numpy as np
import torch
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from .errors_rsmoe import RSMoEError


# An image of fewer pixels a side shows nothing that could be described. It also makes the place of an array's channels
# unambiguous: an axis of 1 to 4 cannot be a side. [our decision]
MIN_SIDE = 8

URL_TIMEOUT_SECONDS = 30.0
MAX_URL_BYTES = 512 * 2**20

_FLOAT_TOLERANCE = 0.01  # a float image resampled by a cubic filter oversteps 0..1 a little
_GDAL_NODATA_TAG = 42113
_BITS_PER_SAMPLE_TAG = 258
_PLANAR_TAG = 284  # 2: the bands are stored one after the other
_BANDS_REMEDY = (
    "read three bands with rasterio and give the array: rasterio.open(path).read([1, 2, 3]), "
    "as uint8, or as uint16 to be stretched by its range"
)

ImageInput = str | os.PathLike | bytes | Image.Image | np.ndarray | torch.Tensor


def read_image(image: ImageInput, name: str | None = None) -> Image.Image:
    """One image, whatever it is given as, as an upright RGB picture of 8 bits a channel.

    Args:
        image: a path or `file://` URL, an `http(s)://` URL, a `data:image/...` URL or bare base64 string (as
            transformers' `load_image` takes them), a file's bytes, a PIL image, or an array or tensor `[H, W]`,
            `[H, W, C]` or `[C, H, W]` with C of 1 to 4 (2 and 4: the last is alpha), of bool, uint8, uint16, int16,
            int32, uint32 or float (0 to 1).
        name: what errors call an image that has no path of its own.

    Returns:
        a new `PIL.Image.Image` of mode "RGB"; the module's docstring says how each kind of pixel is converted.

    Raises:
        RSMoEError: missing, empty, truncated, not an image, smaller than `MIN_SIDE` pixels on a side, over Pillow's
            limit against decompression bombs (it is not decoded then), or an array of another shape or dtype.
    """
    if isinstance(image, (str, os.PathLike)):
        source, shown = _locate(image, name)
        return _read_source(source, shown)
    if isinstance(image, bytes):
        return _read_source(BytesIO(image), name or f"the image of {len(image)} bytes")
    if isinstance(image, Image.Image):
        shown = name or f"the PIL image ({image.mode}, {image.width} x {image.height})"
        if isinstance(image, ImageFile.ImageFile) and image.tile and _is_wide(image):
            # Not decoded yet: Pillow would keep the upper 8 bits only. Its own bytes can still be read in full.
            return _read_source(_bytes_behind(image, shown), shown)
        _check_size(image.width, image.height, shown)
        return _to_rgb(_decode(image, shown), _missing_value(image), shown)
    if isinstance(image, torch.Tensor):
        # numpy has no bfloat16, and half precision is no better as a number of 0 to 1
        tensor = image.detach().cpu()
        array = (tensor.float() if tensor.is_floating_point() else tensor).numpy()
        return _from_array(array, name or f"the tensor of shape {list(image.shape)}")
    if isinstance(image, np.ndarray):
        return _from_array(image, name or f"the array of shape {list(image.shape)}")
    raise RSMoEError(
        f"{name or 'the image'} is of type {type(image).__name__}: "
        "give a path, a URL, a base64 string, bytes, a PIL image, a numpy array or a torch tensor"
    )


def read_images(images: Any) -> Any:
    """`read_image` for each image of a batch; lists, and lists of lists, keep their structure.

    An array or tensor with four axes is a batch of images and comes back as a list. Errors name an image without a
    path of its own by its place, for example `images[1][0]`.
    """
    return _read_nested(images, "images")


def _read_nested(images: Any, place: str) -> Any:
    is_batch = isinstance(images, (np.ndarray, torch.Tensor)) and images.ndim == 4
    if is_batch or isinstance(images, (list, tuple)):
        return [_read_nested(image, f"{place}[{index}]") for index, image in enumerate(images)]
    return read_image(images, name=None if place == "images" else place)


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
            return _path_of_file_url(text), _shorten(text)
        if text.startswith("data:"):
            return BytesIO(bytes_of_data_url(text)), name or f"the data URL {_shorten(text, 40)!r}"
        if not os.path.lexists(text) and (data := _image_in_base64(text)) is not None:
            return BytesIO(data), name or f"the base64 string {_shorten(text, 40)!r}"
    return text, _shorten(text)


def _read_source(source: str | BytesIO, shown: str) -> Image.Image:
    if isinstance(source, BytesIO):
        size = source.getbuffer().nbytes
    else:
        _check_file(source, shown)
        size = os.path.getsize(source)
    if size == 0:
        raise RSMoEError(f"{shown} is empty (0 bytes): copy or download it again")
    with _open(source, shown) as opened:
        _check_size(opened.width, opened.height, shown)
        if _is_wide(opened):
            return _read_wide_color(source, opened, shown)
        return _to_rgb(_decode(opened, shown), _missing_value(opened), shown)


def _check_file(path: str, shown: str) -> None:
    try:
        if os.path.isdir(path):
            raise RSMoEError(f"{shown} is a folder, not an image: name the files in it")
        if not os.path.exists(path):
            raise RSMoEError(
                f"there is no file {shown}: check the path (paths are relative to {_shorten(os.getcwd())})"
            )
        if not os.path.isfile(path):
            raise RSMoEError(f"{shown} is not a regular file: save the image to a file first")
        with open(path, "rb"):
            pass
    except OSError as error:
        raise RSMoEError(f"{shown} cannot be opened ({error.strerror}): check its permissions") from error


def _path_of_file_url(url: str) -> str:
    parts = urlsplit(url)
    if parts.netloc not in ("", "localhost"):
        raise RSMoEError(f"{_shorten(url)} is on another machine ({parts.netloc}): use file:///path or an http(s) URL")
    return url2pathname(parts.path)


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
        reason = _first_line(error)
        raise RSMoEError(f"{shown} cannot be downloaded ({reason}): check the URL and the network") from error
    return received.getvalue()


def bytes_of_data_url(url: str) -> bytes:
    """What a `data:image/...;base64,` URL holds, not looked at; an [`RSMoEError`] for any other URL."""
    header, comma, payload = url.partition(",")
    if not header.startswith("data:image/") or not header.endswith(";base64") or not comma:
        raise RSMoEError(f"the data URL {_shorten(url, 40)!r} is not of the form data:image/png;base64,...")
    try:
        return base64.b64decode("".join(payload.split()), validate=True)
    except binascii.Error as error:
        raise RSMoEError(
            f"the data URL {_shorten(url, 40)!r} is not valid base64 ({error}): encode it again"
        ) from error


def _image_in_base64(text: str) -> bytes | None:
    """The bytes of a bare base64 string if they begin as an image does; a mistyped path is none."""
    try:
        data = base64.b64decode("".join(text.split()), validate=True)
        Image.open(BytesIO(data)).close()
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        return data  # an image, to be refused by its size
    except Exception:
        return None
    return data


def _bytes_behind(image: ImageFile.ImageFile, shown: str) -> BytesIO:
    """The whole file that an opened, not yet decoded PIL image reads from; the image stays usable."""
    file = image.fp
    if file is None or file.closed:
        raise RSMoEError(f"the file behind {shown} is closed: give its path, or open it again")
    position = file.tell()
    file.seek(0)
    data = file.read()
    file.seek(position)
    return BytesIO(data)


# ---- decoding


def _open(source: str | BytesIO, shown: str) -> ImageFile.ImageFile:
    """Reads the header only."""
    try:
        return Image.open(source)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _over_the_limit(shown, _first_line(error)) from error
    except UnidentifiedImageError as error:
        if _magic(source) in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
            raise RSMoEError(
                f"{shown} is a TIFF with bands or numbers that Pillow cannot read: {_BANDS_REMEDY}"
            ) from error
        raise RSMoEError(f"{shown} is not an image that Pillow can read: give a PNG, JPEG, TIFF or similar") from error
    except MemoryError as error:
        raise RSMoEError(f"{shown} does not fit into memory: crop it or cut it into tiles") from error
    except Exception as error:  # see _decode
        raise _broken(shown, error) from error


def _decode(image: Image.Image, shown: str) -> Image.Image:
    """All pixels of an opened image, upright; its pixels keep their mode."""
    try:
        image.load()
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _over_the_limit(shown, _first_line(error)) from error
    except MemoryError as error:
        raise RSMoEError(f"{shown} does not fit into memory: crop it or cut it into tiles") from error
    except Exception as error:  # a damaged file makes Pillow raise OSError, SyntaxError, struct.error, IndexError...
        raise _broken(shown, error) from error
    try:
        return ImageOps.exif_transpose(image)
    except Exception:
        return image


def _read_wide_color(source: str | BytesIO, opened: ImageFile.ImageFile, shown: str) -> Image.Image:
    """Several bands of 16 bits: Pillow decodes the upper 8 bits of each, and in the other byte order the lower 8."""
    raw_mode = _raw_mode(opened)
    kind, _, suffix = raw_mode.partition(";16")
    by_band = getattr(opened, "tag_v2", {}).get(_PLANAR_TAG) == 2
    if by_band or kind not in ("RGB", "RGBX", "RGBA", "LA") or suffix not in ("L", "B", "N"):
        layout = "one band after the other" if by_band else raw_mode
        raise RSMoEError(f"{shown} has 16-bit colors in a layout that Pillow misreads ({layout}): {_BANDS_REMEDY}")
    missing = _missing_value(opened)
    if kind == "LA":  # four bytes a pixel, and Pillow knows no other byte order: take them as they are
        pixels = np.asarray(_decode(_with_raw_mode(opened, "RGBA"), shown)).astype(np.uint16)  # [H, W, 4]
        values = pixels[..., 0::2] << 8 | pixels[..., 1::2]  # [H, W, 2]
    else:
        other = "B" if suffix == "L" or (suffix == "N" and sys.byteorder == "little") else "L"
        if isinstance(source, BytesIO):
            source = BytesIO(source.getvalue())  # the first reader holds its own place in the bytes
        with _open(source, shown) as again:
            lower = np.asarray(_decode(_with_raw_mode(again, f"{kind};16{other}"), shown)).astype(np.uint16)
        values = np.asarray(_decode(opened, shown)).astype(np.uint16) << 8 | lower  # [H, W, 3 or 4]
    colors, alpha = (values, None) if values.shape[-1] == 3 else (values[..., :-1], values[..., -1])
    return _assemble(_stretch(colors, missing, shown), None if alpha is None else (alpha >> 8).astype(np.uint8))


def _raw_mode(image: ImageFile.ImageFile) -> str:
    """How the first tile's bytes are laid out, in Pillow's words: "RGB;16B"."""
    arguments = image.tile[0].args if image.tile else ""
    raw_mode = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return raw_mode if isinstance(raw_mode, str) else ""


def _with_raw_mode(image: ImageFile.ImageFile, raw_mode: str) -> ImageFile.ImageFile:
    tiles = []
    for tile in image.tile:
        tiles.append(tile._replace(args=(raw_mode, *tile.args[1:]) if isinstance(tile.args, tuple) else raw_mode))
    image.tile = tiles
    return image


def _is_wide(image: ImageFile.ImageFile) -> bool:
    """Whether Pillow would cut colors of 16 bits to 8, or misread them."""
    if image.mode not in ("RGB", "RGBA", "RGBX", "CMYK", "LA"):
        return False
    bits = getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE_TAG, 8)
    return ";16" in _raw_mode(image) or max(bits if isinstance(bits, tuple) else (bits,)) > 8


def _missing_value(image: Image.Image) -> float | None:
    """The no-data value that a GeoTIFF declares."""
    declared = getattr(image, "tag_v2", {}).get(_GDAL_NODATA_TAG)
    try:
        return None if declared is None else float(str(declared).strip("\0 "))
    except ValueError:
        return None


def _check_size(width: int, height: int, shown: str) -> None:
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


def _broken(shown: str, error: Exception) -> RSMoEError:
    return RSMoEError(f"{shown} is truncated or damaged ({_first_line(error)}): copy or download it again")


# ---- pixels to 8-bit RGB


def _to_rgb(image: Image.Image, missing: float | None, shown: str) -> Image.Image:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _assemble(_stretch(np.asarray(image)[..., None], missing, shown), None)
    try:
        if image.has_transparency_data:
            image = image.convert("RGBA")
            return Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image).convert("RGB")
        return image.convert("RGB")
    except ValueError as error:  # Pillow converts its rarer modes only to some others
        raise RSMoEError(f"{shown} has pixels of mode {image.mode!r}: convert it to RGB first") from error


def _from_array(array: np.ndarray, shown: str) -> Image.Image:
    pixels = _channels_last(array, shown)  # [H, W, C]
    _check_size(pixels.shape[1], pixels.shape[0], shown)
    has_alpha = pixels.shape[-1] in (2, 4)
    kind = pixels.dtype
    if kind == np.bool_:
        pixels = pixels.astype(np.uint8) * np.uint8(255)
    elif np.issubdtype(kind, np.floating):
        pixels = _from_unit_range(pixels, shown)
    elif kind in (np.uint16, np.int16, np.int32, np.uint32):
        if has_alpha:
            # the fourth band of a raster is near-infrared more often than alpha
            raise RSMoEError(
                f"{shown} has {pixels.shape[-1]} channels of {kind}: choose one band, or three in the order R, G, B"
            )
        return _assemble(_stretch(pixels, None, shown), None)
    elif kind != np.uint8:
        raise RSMoEError(
            f"{shown} has dtype {kind}, whose range is not known: give uint8 (0 to 255), float (0 to 1), "
            "or uint16, int16, int32 or uint32 (stretched by the range of their values)"
        )
    return _assemble(pixels[..., :-1], pixels[..., -1]) if has_alpha else _assemble(pixels, None)


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


def _stretch(values: np.ndarray, missing: float | None, shown: str) -> np.ndarray:
    """`[H, W, C]` of any numbers to uint8 by their joint smallest and largest value; missing ones become 0."""
    valid = np.isfinite(values)
    if missing is not None:
        valid &= values != missing
    if not valid.any():
        raise RSMoEError(f"{shown} holds no data: every pixel is NaN, infinite or the declared no-data value")
    # float64: int32 does not fit float32, and the difference of two float32 can overflow
    low, high = float(values[valid].min()), float(values[valid].max())
    if high > low:
        scaled = (values.astype(np.float64) - low) / (high - low)
    else:
        scaled = values / (1.0 if np.issubdtype(values.dtype, np.floating) else 65535.0)
    return np.rint(np.where(valid, scaled, 0).clip(0, 1) * 255).astype(np.uint8)


def _assemble(colors: np.ndarray, alpha: np.ndarray | None) -> Image.Image:
    """uint8 colors `[H, W, 1 or 3]`, laid over black where alpha `[H, W]` (uint8) says so."""
    if alpha is not None:
        colors = np.rint(colors * (alpha[..., None] / np.float32(255))).astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(np.broadcast_to(colors, (*colors.shape[:2], 3))))


# ---- wording


def _magic(source: str | BytesIO) -> bytes:
    if isinstance(source, BytesIO):
        return source.getvalue()[:4]
    with open(source, "rb") as file:
        return file.read(4)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _shorten(text: str, length: int = 160) -> str:
    """A printable name for errors: file names may hold bytes that no terminal can show."""
    text = os.fsencode(text).decode("utf-8", "replace") if _has_surrogates(text) else text
    return text if len(text) <= length else f"{text[: length - 3]}..."


def _has_surrogates(text: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in text)
