"""A request's body, read up to a limit."""

import asyncio
from contextlib import suppress

from starlette.requests import ClientDisconnect, Request

from .errors import ApiError


# Of a refused request: closing a connection that still sends loses the answer, and clients then see a broken
# connection where they should see why. As nginx's lingering_close.
LINGER_BYTES, LINGER_SECONDS = 64 * 2**20, 10.0


async def read_body(request: Request, limit: int) -> bytes:
    """The whole body; 413 if it has more than `limit` bytes, known from its length in the header if there is one."""
    reason = f"the body has more than {limit} bytes: scale the image down, or send it as JPEG or PNG"
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length) > limit:
        raise ApiError(413, reason, "body_too_large")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise ApiError(413, reason, "body_too_large")
    return bytes(body)


async def discard_body(request: Request) -> None:
    """Read what is left of a refused request's body, within bounds."""
    remaining = LINGER_BYTES
    with suppress(TimeoutError, ClientDisconnect, RuntimeError):  # RuntimeError: it was read to its end
        async with asyncio.timeout(LINGER_SECONDS):
            async for chunk in request.stream():
                remaining -= len(chunk)
                if remaining <= 0:
                    return
