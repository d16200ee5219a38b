"""Who may ask: clients with the key, pages of allowed origins, under the server's own names.

A browser lets any page send requests to this machine: under a name of the page's own that was made to point here (DNS
rebinding), or blindly, as a form does. Names, origins and the content type tell them from the server's clients.
"""

import hmac
import ipaddress
import re
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.requests import Request

from ..errors_rsmoe import RSMoEError
from .errors import ApiError


@dataclass(frozen=True)
class Access:
    """
    Args:
        api_key: clients must send it as a bearer token; None: none is needed.
        names: host names of the server; None: any. IP addresses and `localhost` are always taken: no other page can
            have them.
        origins: of pages that may ask from a browser, such as `https://example.org`; `*` is any. Those of `names` may.

    Raises:
        RSMoEError: a name or an origin that is none.
    """

    api_key: str | None = None
    names: tuple[str, ...] | None = None
    origins: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in self.names or ():
            if not re.fullmatch(r"[a-z0-9-]+(\.[a-z0-9-]+)*", name):
                raise RSMoEError(f"{name!r} is no host name: give one such as example.org, without scheme and port")
        for origin in self.origins:
            if origin != "*" and not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/\s?#@]+", origin):
                raise RSMoEError(f"{origin!r} is no origin: give one such as https://example.org, or *")

    async def check_browser(self, request: Request) -> None:
        """Raises 403 for a host name or an origin that is not allowed."""
        host = request.headers.get("host", "")
        if not self._is_own(_host_name(f"//{host}")):
            reason = f"this server is not {host}: start it with --server-name if that name is its own"
            raise ApiError(403, reason[:300], "host_not_allowed")
        origin = request.headers.get("origin")
        if request.method == "POST" and origin is not None and not self._may_ask(origin, host):
            reason = f"pages of {origin} may not ask: start the server with --cors to let them"
            raise ApiError(403, reason[:300], "origin_not_allowed")

    async def check_key(self, request: Request) -> None:
        """Raises 401 if a key is needed and not sent."""
        authorization = request.headers.get("authorization", "").encode()
        if self.api_key and not hmac.compare_digest(authorization, f"Bearer {self.api_key}".encode()):
            raise ApiError(401, "the API key is missing or wrong", "invalid_api_key")

    def _is_own(self, name: str | None) -> bool:
        if self.names is None or name in ("", "localhost", *self.names):  # HTTP/1.0 may do without a name
            return True
        with suppress(ValueError):
            return bool(ipaddress.ip_address(name or ""))
        return False

    def _may_ask(self, origin: str, host: str) -> bool:
        if "*" in self.origins or origin in self.origins:
            return True
        return origin.partition("://")[2] == host or _host_name(origin) in (self.names or ())


def check_content_type(request: Request) -> None:
    """Raises 415 for a body that is not said to be JSON: browsers send others from any page without asking first."""
    content_type = request.headers.get("content-type", "")
    if content_type.partition(";")[0].strip().lower() != "application/json":
        reason = f"the content type is {content_type or 'missing'}: send application/json"
        raise ApiError(415, reason[:300], "unsupported_media_type")


def _host_name(url: str) -> str | None:
    """Of a URL, in small letters; None if it is malformed."""
    try:
        return (urlsplit(url).hostname or "").rstrip(".")
    except ValueError:
        return None
