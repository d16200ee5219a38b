"""The image of a request: out of its data URL, or fetched where that is allowed; its size is known before it is decoded."""

from io import BytesIO
from urllib.parse import urlsplit

from PIL import Image, UnidentifiedImageError

from ..errors_rsmoe import RSMoEError
from ..utils.images import bytes_of_data_url, read_image
from .errors import ApiError
from .limits import Limits


# What Pillow decodes by itself or with well-kept libraries. Not, for example, EPS, which it gives to Ghostscript.
FORMATS = ("PNG", "JPEG", "TIFF", "WEBP", "GIF", "BMP", "JPEG2000")
_TIFF_MARKS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


async def bytes_of(url: str, place: str, limits: Limits) -> bytes:
    """The image file behind a data URL, or behind an http(s) URL of an allowed host.

    Raises:
        ApiError: 400 for other URLs, 413 for a file over `limits.body_bytes`. RSMoEError: a malformed data URL.
    """
    if url.startswith("data:"):
        return bytes_of_data_url(url)
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https"):
        raise ApiError(400, f"{place} is no data URL (data:image/png;base64,...)", "invalid_image_url", place)
    if "*" not in limits.hosts and parts.hostname not in limits.hosts:
        remedy = "send the image as a data URL, or start the server with --allow-host"
        raise ApiError(400, f"images are not fetched from {parts.hostname}: {remedy}", "url_not_allowed", place)
    return await _fetch(url, place, limits)


async def _fetch(url: str, place: str, limits: Limits) -> bytes:
    from huggingface_hub.utils import httpx  # comes with transformers

    received = BytesIO()
    try:
        # A redirect could lead to a host that is not allowed.
        async with httpx.AsyncClient(follow_redirects=False, timeout=limits.seconds) as client:
            async with client.stream("GET", url) as response:
                if response.status_code != 200:
                    raise ApiError(400, f"{place}: {url} answered {response.status_code}", "invalid_image_url", place)
                async for chunk in response.aiter_bytes():
                    received.write(chunk)
                    if received.tell() > limits.body_bytes:
                        raise _too_large(f"{url} has more than {limits.body_bytes} bytes", place)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise ApiError(400, f"{place}: {url} cannot be fetched ({error})", "invalid_image_url", place) from error
    return received.getvalue()


def open_image(data: bytes, place: str, limits: Limits) -> Image.Image:
    """The image with only its header read; `read_image` decodes it.

    Raises:
        ApiError: 413, more pixels than `limits.pixels`. RSMoEError: no image, or of a kind that is not taken.
    """
    try:
        image = Image.open(BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise _too_large(f"{place} has more than {limits.pixels} pixels", place) from error
    except UnidentifiedImageError as error:
        if data[:4] in _TIFF_MARKS:
            return read_image(data, name=place)  # knows what to do about bands that Pillow does not read
        raise RSMoEError(f"{place} is not an image of a kind that is taken here: {', '.join(FORMATS)}") from error
    except Exception as error:  # a damaged header makes Pillow raise OSError, SyntaxError, struct.error, ...
        raise RSMoEError(f"{place} is truncated or damaged: encode and send it again") from error
    if image.width * image.height > limits.pixels:
        size = f"{image.width} x {image.height} pixels, more than {limits.pixels}"
        raise _too_large(f"{place} has {size}: scale it down or cut it into tiles", place)
    return image


def _too_large(message: str, place: str) -> ApiError:
    return ApiError(413, message, "image_too_large", place)
