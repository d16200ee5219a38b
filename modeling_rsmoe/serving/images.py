"""The image of a request: from its data URL or an allowed host. Its size is known before it is decoded."""

import asyncio
from io import BytesIO
from urllib.parse import urlsplit

from PIL import Image, UnidentifiedImageError

from ..errors_rsmoe import RSMoEError
from ..images_rsmoe import FORMATS, open_header
from ..utils.images import bytes_of_data_url
from ..utils.tiff import HEIGHT, TIFF_MAGIC, WIDTH, read_tags
from .body import Arrivals
from .chat import shorten
from .errors import ApiError
from .limits import Limits


async def bytes_of(url: str, field: str, limits: Limits, arrivals: Arrivals) -> bytes | bytearray:
    """The image file behind a data URL, or behind an http(s) URL of an allowed host; 400 for other URLs. `field` is
    where it stands in the request."""
    if url.startswith("data:"):
        return await asyncio.to_thread(bytes_of_data_url, url)  # megabytes, which would hold up all others
    try:
        address = urlsplit(url)
        _ = address.port  # is only looked at here
    except ValueError as error:  # such as http://[::1 and http://localhost:99999
        raise ApiError(400, f"{field} is no URL ({error})", "invalid_image_url", field) from error
    if address.scheme not in ("http", "https"):
        raise ApiError(400, f"{field} is no data URL (data:image/png;base64,...)", "invalid_image_url", field)
    if "*" not in limits.hosts and address.hostname not in limits.hosts:
        remedy = "send the image as a data URL, or start the server with --allow-host"
        reason = f"images are not fetched from {shorten(str(address.hostname))}: {remedy}"
        raise ApiError(400, reason, "url_not_allowed", field)
    return await _fetch(url, field, limits, arrivals)


async def _fetch(url: str, field: str, limits: Limits, arrivals: Arrivals) -> bytearray:
    from huggingface_hub.utils import httpx  # comes with transformers

    shown = shorten(url)
    try:
        # A redirect could lead to a host that is not allowed.
        async with httpx.AsyncClient(follow_redirects=False, timeout=limits.stall_seconds) as client:
            async with client.stream("GET", url) as response:
                if response.status_code != 200:
                    reason = f"{field}: {shown} answered {response.status_code}"
                    raise ApiError(400, reason, "invalid_image_url", field)
                too_large = _too_large(f"{shown} has more than {limits.body_bytes} bytes", field)
                return await arrivals.read(response.aiter_bytes(), too_large)
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:  # ValueError: a name that DNS does not take
        reason = f"{field}: {shown} cannot be fetched ({shorten(str(error))})"
        raise ApiError(400, reason, "invalid_image_url", field) from error


def open_image(data: bytes | bytearray, field: str, limits: Limits) -> Image.Image | BytesIO:
    """The image with only its header read, or a raster that Pillow does not know; `read_image` decodes it. 413 for
    more pixels than `limits.pixels`."""
    try:
        image = open_header(BytesIO(data))
    except Image.DecompressionBombError as error:
        raise _too_large(f"{field} has more than {limits.pixels} pixels", field) from error
    except UnidentifiedImageError as error:
        if data[:4] in TIFF_MAGIC:
            return _checked_tiff(BytesIO(data), field, limits)
        raise RSMoEError(f"{field} is not an image of a kind that is taken here: {', '.join(FORMATS)}") from error
    except Exception as error:  # a damaged header makes Pillow raise OSError, SyntaxError, struct.error, ...
        raise RSMoEError(f"{field} is truncated or damaged: encode and send it again") from error
    _check_size(image.width, image.height, field, limits)
    return image


def _checked_tiff(file: BytesIO, field: str, limits: Limits) -> BytesIO:
    try:
        tags = read_tags(file)
        width, height = int(tags[WIDTH]), int(tags[HEIGHT])
    except Exception as error:  # as above
        raise RSMoEError(f"{field} is a TIFF that is truncated or damaged: encode and send it again") from error
    _check_size(width, height, field, limits)
    return file


def _check_size(width: int, height: int, field: str, limits: Limits) -> None:
    if width * height > limits.pixels:
        size = f"{width} x {height} pixels, more than {limits.pixels}"
        raise _too_large(f"{field} has {size}: scale it down or cut it into tiles", field)


def _too_large(message: str, field: str) -> ApiError:
    return ApiError(413, message, "image_too_large", field)
