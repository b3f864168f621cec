"""Clients that nobody wants, and a memory that is replaced meanwhile: what `serve_load.py --hostile` adds."""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from koffkit.artefact.bundle import open_bundle
from koffkit.artefact.export import open_export, replaces
from koffkit.artefact.names import MEMORIES, MEMORY_FILE
from koffkit.storage.publish import replacing

PATH, JSON = "/v1/completions", {"Content-Type": "application/json"}
MALFORMED = (
    b'{"model": "nor',
    b"\xff\xfe",
    b"[]",
    b'{"model": "nobody", "prompt": "x"}',
    b'{"model": "none", "prompt": "x", "max_tokens": "many"}',
    b'{"model": "none", "prompt": "x", "temperature": 1e999}',
)
EVERY = 20
"""Seconds between two replacements."""


def swap(export: Path, name: str, source: Path) -> None:
    """Another memory in the place of `name`, in one step, as `koffkit memory replace` does it."""
    info = open_bundle(source).info.evolve(domain=name, replaces=replaces(open_export(export), name))
    with replacing(export / MEMORIES / name) as partial:
        shutil.copytree(source, partial, dirs_exist_ok=True)
        info.write(partial / MEMORY_FILE)


class Hostile:
    """What happens beside the load.

    Args:
        url: of the server.
        export: the folder that it follows, of which one memory is replaced.
        name: of that memory.
        others: folders of the memories that it is in turn.
        end: when to stop, on the clock of `time.perf_counter`.
    """

    def __init__(self, url: str, export: Path, name: str, others: list[Path], end: float) -> None:
        self._url, self._export, self._name, self._others, self._end = url, export, name, others, end
        self.seen: Counter[str] = Counter()

    async def run(self) -> None:
        """All of it, until the end."""
        repeated: list[tuple[Callable[[httpx.AsyncClient, int], Awaitable[None]], float]] = [
            (self._malformed, 0.2),
            (self._oversized, 2),
            (self._slow, 1),
            (self._slow, 1),
            (self._vanishing, 0.3),
            (self._replace, EVERY),
        ]
        limits = httpx.Limits(max_connections=50, max_keepalive_connections=0)
        async with httpx.AsyncClient(
            base_url=self._url, timeout=600, limits=limits, trust_env=False
        ) as client:

            async def again(what: Callable[[httpx.AsyncClient, int], Awaitable[None]], pause: float) -> None:
                number = 0
                while time.perf_counter() + pause < self._end:
                    await asyncio.sleep(pause)
                    try:
                        await what(client, number)
                    except (httpx.TransportError, ConnectionError):
                        self.seen[f"{what.__name__.strip('_')}: hung up on"] += 1
                    number += 1

            await asyncio.gather(*(again(what, pause) for what, pause in repeated))

    async def _malformed(self, client: httpx.AsyncClient, number: int) -> None:
        answer = await client.post(PATH, content=MALFORMED[number % len(MALFORMED)], headers=JSON)
        self.seen[f"malformed: HTTP {answer.status_code}"] += 1

    async def _oversized(self, client: httpx.AsyncClient, number: int) -> None:
        body = json.dumps({"model": "none", "prompt": "x" * (8 << 20)})
        answer = await client.post(PATH, content=body, headers=JSON)
        self.seen[f"oversized: HTTP {answer.status_code}"] += 1

    async def _slow(self, client: httpx.AsyncClient, number: int) -> None:
        place = urlsplit(self._url)
        reader, writer = await asyncio.open_connection(place.hostname, place.port)
        head = (
            f"POST {PATH} HTTP/1.1",
            f"Host: {place.netloc}",
            "Content-Type: application/json",
            "Content-Length: 999",
        )
        try:
            writer.write("\r\n".join((*head, "", "")).encode())
            for _ in range(60):
                writer.write(b" ")
                await writer.drain()
                if time.perf_counter() > self._end:
                    break
                try:
                    data = await asyncio.wait_for(reader.read(200), 1)
                except TimeoutError:
                    continue
                self.seen[f"slow: {data[:12].decode() or 'hung up on'}"] += 1
                return
            self.seen["slow: still waited for"] += 1
        finally:
            writer.close()

    async def _vanishing(self, client: httpx.AsyncClient, number: int) -> None:
        body = {"model": self._name, "prompt": "x", "max_tokens": 64, "stream": True}
        async with client.stream("POST", PATH, json=body) as answer:
            async for _ in answer.aiter_lines():
                break
        self.seen[f"vanished: HTTP {answer.status_code}"] += 1

    async def _replace(self, client: httpx.AsyncClient, number: int) -> None:
        await asyncio.to_thread(swap, self._export, self._name, self._others[number % len(self._others)])
        self.seen["replaced"] += 1
