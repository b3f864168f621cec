"""What every request passes first: who may ask, from where, and how much."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
from collections.abc import Awaitable, Callable, MutableMapping
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
        try:
            self._check(scope, headers)
            body = await self._body(headers, receive)
        except ApiError as error:
            self._refused(error.status)
            await _refuse(error, send)
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

    async def _body(self, headers: dict[str, str], receive: Receive) -> bytes | None:
        """The whole body; None: the client has gone."""
        stated = headers.get("content-length", "")
        if stated.isdigit() and int(stated) > self._max_body:
            raise self._too_large()
        try:
            return await asyncio.wait_for(self._read(receive), BODY_SECONDS)
        except (TimeoutError, asyncio.TimeoutError):
            raise ApiError(408, f"the body did not come within {BODY_SECONDS:g} s.", "slow_body") from None

    async def _read(self, receive: Receive) -> bytes | None:
        parts, size = [], 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > self._max_body:
                raise self._too_large()
            if not message.get("more_body", False):
                return b"".join(parts)

    def _too_large(self) -> ApiError:
        return ApiError(
            413, f"the body is larger than {self._max_body:,} bytes (--max-body); send less.", "too_large"
        )


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


async def _refuse(error: ApiError, send: Send) -> None:
    from starlette.responses import JSONResponse

    response = JSONResponse(error.body, error.status, error.headers | HEADERS | {"Connection": "close"})
    await send({"type": "http.response.start", "status": error.status, "headers": response.raw_headers})
    await send({"type": "http.response.body", "body": bytes(response.body)})
