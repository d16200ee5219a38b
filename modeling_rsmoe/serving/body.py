"""What arrives from clients and image hosts, read up to limits."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress

from starlette.requests import ClientDisconnect, Request

from .errors import ApiError
from .limits import Limits


# Of a refused request: closing a connection that still sends loses the answer, and clients then see a broken
# connection where they should see why. As nginx's lingering_close.
LINGER_BYTES, LINGER_SECONDS = 64 * 2**20, 10.0


class Arrivals:
    """Bodies and images that are arriving. They take no place in the queue: whoever sends slowly, or asks for images
    of a slow host, must not keep others out. All together they hold no more than a full queue may.

    Args:
        limits: of requests.
    """

    def __init__(self, limits: Limits):
        self.limits, self.num_bytes = limits, 0

    async def read(self, chunks: AsyncIterator[bytes], too_large: ApiError) -> bytearray:
        """All chunks.

        Raises:
            ApiError: `too_large` for more than `limits.body_bytes`; 429 where too much is arriving already.
            TimeoutError: nothing came for `limits.stall_seconds`.
        """
        loop, received = asyncio.get_running_loop(), bytearray()
        try:
            async with asyncio.timeout(self.limits.stall_seconds) as stall:
                async for chunk in chunks:
                    stall.reschedule(loop.time() + self.limits.stall_seconds)
                    received += chunk
                    self.num_bytes += len(chunk)
                    if len(received) > self.limits.body_bytes:
                        raise too_large
                    if self.num_bytes > self.limits.requests * self.limits.body_bytes:
                        raise ApiError(429, "too much is arriving: try again later", "queue_full", retry_after=1)
            return received
        finally:
            self.num_bytes -= len(received)

    async def read_body(self, request: Request) -> bytearray:
        """The body of a request.

        Raises:
            ApiError: 413 if it has more than `limits.body_bytes`, known from its length in the header if there is one;
                429.
            TimeoutError, ClientDisconnect: it did not arrive.
        """
        limit = self.limits.body_bytes
        reason = f"the body has more than {limit} bytes: scale the image down, or send it as JPEG or PNG"
        too_large = ApiError(413, reason, "body_too_large")
        length = request.headers.get("content-length", "")
        if length.isdigit() and int(length) > limit:
            raise too_large
        return await self.read(request.stream(), too_large)


async def discard_body(request: Request) -> None:
    """Read what is left of a refused request's body, within bounds."""
    remaining = LINGER_BYTES
    with suppress(TimeoutError, ClientDisconnect, RuntimeError):  # RuntimeError: it was read to its end
        async with asyncio.timeout(LINGER_SECONDS):
            async for chunk in request.stream():
                remaining -= len(chunk)
                if remaining <= 0:
                    return
