"""A request's body, read up to a limit."""

import asyncio
from contextlib import suppress

from starlette.requests import ClientDisconnect, Request

from .errors import ApiError


# Of a refused request: closing a connection that still sends loses the answer, and clients then see a broken connection
# where they should see why. As nginx's lingering_close.
LINGER_BYTES, LINGER_SECONDS = 64 * 2**20, 10.0


class Body:
    """
    Args:
        limit: bytes that are kept.
    """

    def __init__(self, request: Request, limit: int):
        self.request, self.limit, self.ended = request, limit, False

    async def read(self) -> bytes:
        """All of it.

        Raises:
            ApiError: 413, known from its length in the header if there is one. ClientDisconnect.
        """
        reason = f"the body has more than {self.limit} bytes: scale the image down, or send it as JPEG or PNG"
        length = self.request.headers.get("content-length", "")
        if length.isdigit() and int(length) > self.limit:
            raise ApiError(413, reason, "body_too_large")
        body = bytearray()
        while not self.ended:
            body += await self._piece()
            if len(body) > self.limit:
                raise ApiError(413, reason, "body_too_large")
        return bytes(body)

    async def discard(self) -> None:
        """What is left of it, within bounds."""
        left = LINGER_BYTES
        with suppress(TimeoutError, ClientDisconnect):
            async with asyncio.timeout(LINGER_SECONDS):
                while not self.ended and left > 0:
                    left -= len(await self._piece())

    async def _piece(self) -> bytes:
        message = await self.request.receive()
        if message["type"] == "http.disconnect":
            self.ended = True
            raise ClientDisconnect
        self.ended = not message.get("more_body", False)
        return message.get("body", b"")
