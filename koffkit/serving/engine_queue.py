"""Requests that wait for an engine, and how they come in."""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence

from typing_extensions import Self

from .engine_rows import QueueFull, Request, Row, Stopped

TICK = 0.5
"""Seconds after which an engine that cannot admit anybody looks for requests that are out of time."""


class RequestQueue(ABC):
    """What engines have in common; a context manager, which starts and stops their threads.

    Args:
        max_batch: the most requests that are answered at once.
        max_queue: the most that wait.
    """

    _threads: Sequence[threading.Thread]
    _patience: float | None = None
    """Seconds that each thread has to end; None: as long as it takes."""

    def __init__(self, max_batch: int, max_queue: int) -> None:
        self.max_batch, self.max_queue = max_batch, max_queue
        self._waiting: deque[Row] = deque()
        self._changed = threading.Condition()
        self._stopping = False

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Stop after the step at hand; who still waits for an answer gets `Stopped`."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        for thread in self._threads:
            if thread.is_alive():
                thread.join(self._patience)

    @property
    def queued(self) -> int:
        """Requests that wait."""
        return len(self._waiting)

    @property
    @abstractmethod
    def active(self) -> int:
        """Requests that are being answered."""

    @property
    def is_alive(self) -> bool:
        """Whether it takes requests."""
        return not self._stopping and any(thread.is_alive() for thread in self._threads)

    def health(self) -> str:
        """`ok`, or why there are no answers now. This may ask another server: not for the event loop."""
        return "ok" if self.is_alive else "stopping"

    def submit(self, requests: Sequence[Request]) -> list[Row]:
        """Queue requests, all or none of them.

        Returns:
            What each can be cancelled with.

        Raises:
            QueueFull: too many are waiting.
            Stopped: the engine is stopping.
        """
        rows = [self._row(request) for request in requests]
        with self._changed:
            if self._stopping:
                raise Stopped("the server is shutting down; ask another one.")
            if len(self._waiting) + len(rows) > self.max_batch - self.active + self.max_queue:
                raise QueueFull(
                    f"{len(self._waiting)} requests wait and {self.active} are being answered, which is all "
                    "that this server takes (--max-queue, --max-batch); try again in a moment."
                )
            self._waiting.extend(rows)
            self._changed.notify_all()
        return rows

    @abstractmethod
    def _row(self, request: Request) -> Row:
        """A request that has just come."""

    def _leave_queue(self) -> None:
        now = time.monotonic()
        for row in [row for row in self._waiting if row.is_over(now)]:
            self._waiting.remove(row)
