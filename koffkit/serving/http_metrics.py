"""Figures for Prometheus."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from .engine_rows import NO_MEMORY

SIZES = (1, 2, 4, 8, 16, 32, 64)
SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


class Metrics:
    """What `/metrics` tells."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        registry = self._registry
        self._requests = Counter(
            "koffkit_requests",
            "Answers and refusals, by HTTP status.",
            ("memory", "status"),
            registry=registry,
        )
        self._tokens = Counter(
            "koffkit_tokens", "Tokens read and written.", ("memory", "kind"), registry=registry
        )
        self._steps = Histogram("koffkit_batch_rows", "Rows of a step.", buckets=SIZES, registry=registry)
        self._first = Histogram(
            "koffkit_first_token_seconds",
            "Until the first token.",
            ("memory",),
            buckets=SECONDS,
            registry=registry,
        )
        self._seconds = Histogram(
            "koffkit_request_seconds",
            "Until the answer is whole.",
            ("memory",),
            buckets=SECONDS,
            registry=registry,
        )
        self._changes = Counter(
            "koffkit_memory_changes", "Memories that came or went.", ("change",), registry=registry
        )

    def watch(self, engine: Any, model: Any) -> None:
        """Tell of an engine and its model whenever the figures are asked for."""
        found: dict[str, tuple[str, Callable[[], float]]] = {
            "queued_requests": ("Requests that wait.", lambda: engine.queued),
            "active_rows": ("Rows of the batch.", lambda: engine.active),
            "memories": ("Memories that can be asked for.", lambda: len(model.domains)),
        }
        for name, (meaning, value) in found.items():
            Gauge(f"koffkit_{name}", meaning, registry=self._registry).set_function(value)

    def stepped(self, rows: int) -> None:
        """The engine computes a step."""
        self._steps.observe(rows)

    def first_token(self, memory: str | None, seconds: float) -> None:
        """An answer begins."""
        self._first.labels(memory or NO_MEMORY).observe(seconds)

    def answered(self, memory: str | None, status: int, prompt: int, completion: int, seconds: float) -> None:
        """An answer is whole, or broke off.

        Args:
            memory: that it was made with.
            status: of HTTP; 499: the client has gone.
            prompt, completion: tokens.
            seconds: since it was asked for.
        """
        name = memory or NO_MEMORY
        self._requests.labels(name, str(status)).inc()
        self._tokens.labels(name, "prompt").inc(prompt)
        self._tokens.labels(name, "completion").inc(completion)
        self._seconds.labels(name).observe(seconds)

    def refused(self, status: int) -> None:
        """A request that never got a memory."""
        self._requests.labels("", str(status)).inc()

    def changed(self, change: str) -> None:
        """A memory was added, replaced or removed, or that failed."""
        self._changes.labels(change).inc()

    def text(self) -> bytes:
        """In Prometheus's format."""
        return generate_latest(self._registry)
