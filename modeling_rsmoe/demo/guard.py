"""What visitors may ask of the page's server: the page, its files, uploads and its events. Knows nothing of the page.

Gradio's server does more: it fetches URLs for visitors, passes requests on, and works on recordings.
"""

import json
import re
from collections.abc import Awaitable, Callable
from typing import Any


MAX_EVENT_BYTES = 2**20  # of an event's values; files come by themselves
_ALLOWED = re.compile(
    r"/(|config|theme\.css|favicon\.ico|manifest\.json|robots\.txt|(assets|static|svelte)/.*)"
    r"|/gradio_api/(upload(_progress)?|queue/(join|data)|run/\w+|cancel|reset/?|startup-events|app_id|info"
    r"|heartbeat/\w+|file=(?!https?:).*)"
)
_EVENT = re.compile(r".*/gradio_api/(queue/join|run/\w+)/?")  # the latter: what does not wait in the queue
_URL_AS_FILE = re.compile(r'"path": "\s*https?:', re.IGNORECASE)

App = Callable[[dict[str, Any], Callable[[], Awaitable[Any]], Callable[[Any], Awaitable[None]]], Awaitable[None]]


class Guard:
    """ASGI middleware: 404 for what the page does not need, 413 for an event that is too large, 400 for a URL in place
    of an uploaded file."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
        elif not _ALLOWED.fullmatch(scope["path"].removeprefix(scope.get("root_path", ""))):
            await _answer(send, 404, "this page has no such address")
        elif _EVENT.fullmatch(scope["path"]):
            body, more = b"", True
            while more and len(body) <= MAX_EVENT_BYTES:
                message = await receive()
                body, more = body + message.get("body", b""), message.get("more_body", False)
            if len(body) > MAX_EVENT_BYTES:
                await _answer(send, 413, f"an event of more than {MAX_EVENT_BYTES >> 10} KiB")
            elif _URL_AS_FILE.search(_normal(body)):
                await _answer(send, 400, "a URL is no upload: save the image to a file, and upload that")
            else:
                await self._app(scope, _again(body, receive), send)
        else:
            await self._app(scope, receive, send)


def _normal(body: bytes) -> str:
    """JSON as Python writes it; "" for what is none, which the page refuses itself."""
    try:
        return json.dumps(json.loads(body))
    except (ValueError, RecursionError):
        return ""


def _again(body: bytes, receive: Any) -> Callable[[], Awaitable[Any]]:
    """A body that was read, and then whatever else the client sends."""
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def next_message() -> Any:
        return messages.pop() if messages else await receive()

    return next_message


async def _answer(send: Any, status: int, text: str) -> None:
    content = json.dumps({"detail": text}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": [*headers, (b"connection", b"close")]})
    await send({"type": "http.response.body", "body": content})
