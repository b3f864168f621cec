"""Running the HTTP server until a signal ends it."""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import Any

import uvicorn

from ..errors import UsageError
from .http_guard import App

GRACE_SECONDS = 30
"""How long answers that are being written get to end after SIGINT or SIGTERM."""


def bind(host: str, port: int) -> socket.socket:
    """A socket of this address that does not listen yet.

    Args:
        host: a name or an address.
        port: 0: a free one.

    Raises:
        UsageError: there is no such address here, or the port is in use.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(address)
        except OSError:
            bound.close()
            raise
    except OSError as error:
        reason = error.strerror or str(error)
        raise UsageError(f"--host {host} --port {port}: {reason}; give another one.") from None
    return bound


def address_of(bound: socket.socket) -> str:
    """The URL of a socket."""
    host, port = bound.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def server_of(app: App) -> uvicorn.Server:
    """The server of an app, to be run with a socket.

    Args:
        app: the ASGI app.
    """
    config: Any = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="auto",
        timeout_keep_alive=5,
        timeout_graceful_shutdown=GRACE_SECONDS,
        h11_max_incomplete_event_size=16 << 10,
    )
    return uvicorn.Server(config)


def run(app: App, bound: socket.socket, *, look_now: Callable[[], None] = lambda: None) -> None:
    """Serve until SIGINT or SIGTERM; answers that are being written may end, a second signal ends them.

    Args:
        app: the ASGI app.
        bound: where it listens.
        look_now: called on SIGHUP.
    """
    with _signals(look_now):
        server_of(app).run(sockets=[bound])


@contextmanager
def _signals(look_now: Callable[[], None]) -> Iterator[None]:
    """uvicorn handles SIGINT and SIGTERM while it runs and sends itself the same signal afterwards: here it
    finds a handler that does nothing, since everything is done."""

    def nothing(number: int, frame: FrameType | None) -> None:
        pass

    def hang_up(number: int, frame: FrameType | None) -> None:
        look_now()

    handlers = {signal.SIGINT: nothing, signal.SIGTERM: nothing, signal.SIGHUP: hang_up}
    with ExitStack() as stack:
        for number, handler in handlers.items():
            stack.callback(signal.signal, number, signal.signal(number, handler))
        yield
