"""What a client whose request is refused gets: an answer that it can read, whatever it still sends, and no
more of the server's time than that takes."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator

import pytest

from koffkit import KoffModel

from ..conftest import Shipped

for package in ("fastapi", "uvicorn", "prometheus_client", "httpx"):
    pytest.importorskip(package)

from koffkit.serving import http_guard  # noqa: E402

from ..served import Served, serving  # noqa: E402

PIECE = b"x" * 50_000
STATED = "Content-Length: 8000000"
CHUNKED = "Transfer-Encoding: chunked"


@pytest.fixture(scope="module")
def served(shipped: Shipped) -> Iterator[Served]:
    model = KoffModel.from_pretrained(shipped.export)
    with serving(model, max_body=20_000) as served:
        yield served


def begun(served: Served, length: str, kind: str = "application/json") -> socket.socket:
    """A connection on which a request has begun."""
    host, port = served.url.removeprefix("http://").split(":")
    lines = ["POST /v1/completions HTTP/1.1", f"Host: {host}", f"Content-Type: {kind}", length, "", ""]
    connection = socket.create_connection((host, int(port)), timeout=20)
    connection.sendall("\r\n".join(lines).encode())
    return connection


def everything(connection: socket.socket) -> bytes:
    """What the server says until it hangs up."""
    received = b""
    while data := connection.recv(4096):
        received += data
    return received


@pytest.mark.parametrize("length", [STATED, CHUNKED])
@pytest.mark.parametrize(("kind", "status"), [("application/json", 413), ("text/plain", 415)])
def test_who_reads_last_reads_why(served: Served, length: str, kind: str, status: int) -> None:
    with begun(served, length, kind) as connection:
        for _ in range(8_000_000 // len(PIECE)):
            connection.sendall(PIECE if length == STATED else b"%x\r\n%s\r\n" % (len(PIECE), PIECE))
        if length == CHUNKED:
            connection.sendall(b"0\r\n\r\n")
        head, _, body = everything(connection).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status) and b"\r\nconnection: close" in head.lower()
    assert json.loads(body)["error"]["code"] == {413: "too_large", 415: "not_json"}[status]


def test_who_sends_without_end_is_hung_up_on(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_guard, "LEFT_BYTES", 10 * len(PIECE))
    sent = 0
    with begun(served, "Content-Length: 900000000000") as connection, pytest.raises(OSError):
        while sent < 1 << 30:
            connection.sendall(PIECE)
            sent += len(PIECE)
    assert sent < 64 << 20  # buffers of the system included


def test_who_sends_no_more_is_not_waited_for(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_guard, "LEFT_SECONDS", 3.0)
    start = time.monotonic()
    with begun(served, STATED) as connection:
        assert b"413" in connection.recv(4096)  # at once, not only when the body has come
        assert time.monotonic() - start < 2
        everything(connection)
    assert 2.5 < time.monotonic() - start < 15
    with served.client as client:
        assert client.get("/health").status_code == 200


def test_a_body_that_came_whole_is_not_waited_for(served: Served) -> None:
    start = time.monotonic()
    with begun(served, f"Content-Length: {len(PIECE)}") as connection:
        connection.sendall(PIECE)
        assert b"413" in everything(connection)
    assert time.monotonic() - start < http_guard.LEFT_SECONDS / 2
