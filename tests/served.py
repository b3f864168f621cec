"""A server in a thread of the test process, on a free port of loopback."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx


@dataclass
class Served:
    """A running server."""

    url: str
    engine: Any
    service: Any
    memories: Any
    app: Any

    @property
    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=30, trust_env=False)

    def post(self, path: str, body: dict[str, Any], **options: Any) -> httpx.Response:
        with self.client as client:
            return client.post(path, json=body, **options)

    def figure(self, name: str) -> float:
        """The sum of a figure of `/metrics` over all labels, or that of one label."""
        with self.client as client:
            lines = client.get("/metrics").text.splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


@contextmanager
def serving(model: Any, export: Any = None, *, pause: float = 0.0, **options: Any) -> Iterator[Served]:
    """Serve a model until the block ends.

    Args:
        model: a `KoffModel`.
        export: whose folder of memories is looked into.
        pause: seconds that every step takes at least.
        options: `max_batch` and `max_queue` of the engine, `rescan`, `max_tokens` and `seconds`, and those of
            `create_app`.
    """
    from koffkit.serving.engine import Engine
    from koffkit.serving.http import create_app
    from koffkit.serving.http_memories import Memories
    from koffkit.serving.http_metrics import Metrics
    from koffkit.serving.http_run import address_of, bind, server_of
    from koffkit.serving.http_service import Service

    def take(*names: str) -> dict[str, Any]:
        return {name: options.pop(name) for name in names if name in options}

    def stepped(rows: int) -> None:
        metrics.stepped(rows)
        time.sleep(pause)

    metrics = Metrics()
    engine = Engine(model, on_step=stepped, **take("max_batch", "max_queue"))
    memories = Memories(
        model, engine, export, options.pop("rescan", 60), lambda what, words: metrics.changed(what)
    )
    service = Service(model, engine, **take("max_tokens", "seconds"))
    metrics.watch(engine, model)
    with bind("127.0.0.1", 0) as bound, engine, memories:
        app = create_app(service, memories, metrics, **options)
        server = server_of(app)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
        thread.start()
        try:
            wait_for(lambda: server.started)
            yield Served(address_of(bound), engine, service, memories, app)
        finally:
            server.should_exit = True
            thread.join(20)
    assert not thread.is_alive()


def wait_for(condition: Any, seconds: float = 15) -> None:
    """Wait until something holds, or fail."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.01)
