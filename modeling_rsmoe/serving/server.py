"""Running the app: one process, a socket that is taken before the model is loaded, an orderly end."""

import ipaddress
import os
import signal
import socket
from types import FrameType

import uvicorn

from ..errors_rsmoe import RSMoEError
from .app import Service, build_app


GRACE_SECONDS = 5  # beyond the time that a request may take
INTERRUPTED = 130  # as the command line ends


def take_address(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 is any free one. Refuses an address that is taken, or not this machine's."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=1024)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise RSMoEError(f"cannot listen at {host}:{port} ({reason}): give another --host or --port") from error


def is_loopback(listening: socket.socket) -> bool:
    """Whether only this machine reaches a socket."""
    return ipaddress.ip_address(listening.getsockname()[0]).is_loopback


class _Server(uvicorn.Server):
    """On SIGTERM: refuses new requests, finishes those in flight, ends with 0. Ctrl-C: likewise, but as an
    interruption; once more: ends at once."""

    def __init__(self, service: Service, level: str):
        self.service, self.is_interrupted = service, False
        grace = int(service.limits.seconds) + GRACE_SECONDS
        app = build_app(service)
        super().__init__(uvicorn.Config(app, log_level=level, timeout_graceful_shutdown=grace, server_header=False))

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Instead of uvicorn's, which raises the signal again in the end: SIGTERM would end in 143, a second Ctrl-C in
        tracebacks of all that runs."""
        if sig == signal.SIGINT and self.is_interrupted:
            os.write(2, b"rsmoe: interrupted\n")
            os._exit(INTERRUPTED)  # nothing is being written to files
        self.service.is_stopping = self.should_exit = True
        self.is_interrupted |= sig == signal.SIGINT


def run(service: Service, listening: socket.socket, level: str = "warning") -> None:
    """Serve until a signal ends it.

    Args:
        service: to be served.
        listening: of `take_address`.
        level: of uvicorn's log.

    Raises:
        KeyboardInterrupt: after Ctrl-C.
    """
    server = _Server(service, level)
    server.run(sockets=[listening])
    if server.is_interrupted:
        raise KeyboardInterrupt
