"""What every request passes first: who may ask, from where, and how much."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from .http_errors import ApiError

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]
OPEN = ("/", "/health")
"""What may be read without a key: a page without content, and whether the server lives."""
BODY_SECONDS = 30.0
LEFT_BYTES, LEFT_SECONDS = 64 << 20, 5.0
"""How much of a refused request is read and dropped, and for how long. A connection that is closed while the
client still sends is reset, and the answer is lost with it."""
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
}


class Guard:
    """An ASGI app around another one.

    Args:
        app: the app inside.
        key: the API key; None: none is asked for.
        loopback: only requests that were sent to a loopback name are answered, so that no web page can reach
            the server under a name of its own.
        max_body: the most bytes of a request.
        refused: told of the status of every refusal.
    """

    def __init__(
        self, app: App, key: str | None, loopback: bool, max_body: int, refused: Callable[[int], None]
    ) -> None:
        self._app, self._key, self._loopback = app, key, loopback
        self._max_body, self._refused = max_body, refused

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {
            name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]
        }
        incoming = _Incoming(receive)
        try:
            self._check(scope, headers)
            body = await self._body(headers, incoming)
        except ApiError as error:
            self._refused(error.status)
            await _refuse(error, incoming, send)
            return
        if body is not None:
            await self._app(scope, _again(body, receive), send)

    def _check(self, scope: MutableMapping[str, Any], headers: dict[str, str]) -> None:
        if self._loopback and not is_loopback(urlsplit(f"//{headers.get('host', '')}").hostname or ""):
            raise ApiError(403, "Host: this server answers to loopback names only.", "wrong_host")
        if self._key is not None and scope["path"] not in OPEN:
            given = headers.get("authorization", "").removeprefix("Bearer ").strip()
            if not hmac.compare_digest(given.encode(), self._key.encode()):
                raise ApiError(401, "Authorization: a valid API key is needed.", "invalid_api_key")
        if scope["method"] == "POST":
            kind = headers.get("content-type", "").partition(";")[0].strip().lower()
            if kind != "application/json":
                raise ApiError(415, "Content-Type: it must be application/json.", "not_json")

    async def _body(self, headers: dict[str, str], incoming: _Incoming) -> bytes | None:
        """The whole body; None: the client has gone."""
        stated = headers.get("content-length", "")
        if stated.isdigit() and int(stated) > self._max_body:
            raise self._too_large()
        try:
            return await asyncio.wait_for(self._read(incoming), BODY_SECONDS)
        except (TimeoutError, asyncio.TimeoutError):
            raise ApiError(408, f"the body did not come within {BODY_SECONDS:g} s.", "slow_body") from None

    async def _read(self, incoming: _Incoming) -> bytes | None:
        parts, size = [], 0
        while not incoming.ended:
            parts.append(await incoming.next())
            size += len(parts[-1])
            if size > self._max_body:
                raise self._too_large()
        return None if incoming.gone else b"".join(parts)

    def _too_large(self) -> ApiError:
        return ApiError(
            413, f"the body is larger than {self._max_body:,} bytes (--max-body); send less.", "too_large"
        )


class _Incoming:
    """The body of a request, as it comes.

    Args:
        receive: of the request.
    """

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self.gone = self.ended = False

    async def next(self) -> bytes:
        """The next part; `ended` says whether it was the last, `gone` whether the client has left."""
        message = await self._receive()
        self.gone = message["type"] == "http.disconnect"
        self.ended = self.gone or not message.get("more_body", False)
        part: bytes = message.get("body", b"")
        return part

    async def drop(self) -> None:
        """Read what is left, up to a bound, and keep nothing."""
        left = LEFT_BYTES
        while not self.ended and left > 0:
            left -= len(await self.next())


def is_loopback(host: str) -> bool:
    """Whether a name or address means this machine, to itself."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _again(body: bytes, receive: Receive) -> Receive:
    """A `receive` that hands out the body once more."""
    first = True

    async def replay() -> Message:
        nonlocal first
        if first:
            first = False
            return {"type": "http.request", "body": body, "more_body": False}
        return await receive()

    return replay


async def _refuse(error: ApiError, incoming: _Incoming, send: Send) -> None:
    """Answer first, then let a client finish that reads nothing before it has sent everything."""
    from starlette.responses import JSONResponse

    response = JSONResponse(error.body, error.status, error.headers | HEADERS | {"Connection": "close"})
    await send({"type": "http.response.start", "status": error.status, "headers": response.raw_headers})
    await send({"type": "http.response.body", "body": bytes(response.body), "more_body": True})
    if error.status != 408:  # it had its time
        with suppress(TimeoutError, asyncio.TimeoutError):
            await asyncio.wait_for(incoming.drop(), LEFT_SECONDS)
    await send({"type": "http.response.body"})
