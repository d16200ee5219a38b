"""Running the app: one process, a socket that is taken before the model is loaded, an orderly end."""

import signal
import socket
from types import FrameType

import uvicorn

from ..errors_rsmoe import RSMoEError
from .app import Service, build_app


GRACE_SECONDS = 5  # beyond the time that a request may take


def take_address(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 is any free one. Refuses an address that is taken, or not this machine's."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=1024)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise RSMoEError(f"cannot listen at {host}:{port} ({reason}): give another --host or --port") from error


class _Server(uvicorn.Server):
    """On SIGTERM: refuses new requests, finishes those in flight, ends with 0. Ctrl-C: likewise, but with 130."""

    def __init__(self, service: Service, level: str):
        self.service = service
        grace = int(service.limits.seconds) + GRACE_SECONDS
        app = build_app(service)
        super().__init__(uvicorn.Config(app, log_level=level, timeout_graceful_shutdown=grace, server_header=False))

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.service.is_stopping = True
        if sig == signal.SIGTERM:
            self.should_exit = True  # uvicorn would raise the signal again afterwards, which ends in 143
        else:
            super().handle_exit(sig, frame)


def run(service: Service, listening: socket.socket, level: str = "warning") -> None:
    """Serve until a signal ends it.

    Args:
        service: to be served.
        listening: of `take_address`.
        level: of uvicorn's log.
    """
    _Server(service, level).run(sockets=[listening])
