"""Continuous batching: one thread, one batch, rows that come and go between steps.

Every row has its own memory, sampling and position. Before each step, rows that are done, cancelled or out of
time leave, and waiting ones are admitted: their prompts are read together, then they join the batch.
"""

from __future__ import annotations

import copy
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from ..errors import KoffkitError, UsageError, near_name
from .engine_batch import Batch
from .engine_queue import TICK, RequestQueue
from .engine_rows import Request, Row, Stopped, UnknownMemory, as_error

logger = logging.getLogger(__name__)
PREFILL_TOKENS = 4096
"""Tokens of prompts, padding included, that are read between two steps; one prompt always is."""


class Engine(RequestQueue):
    """Answers requests; a context manager, which starts and stops its thread.

    Args:
        model: a `KoffModel`, which other threads may use, too.
        max_batch: the most rows at once.
        max_queue: the most requests that wait.
        on_step: told of the size of the batch before every step.
    """

    def __init__(
        self,
        model: Any,
        *,
        max_batch: int = 16,
        max_queue: int = 64,
        on_step: Callable[[int], None] = lambda size: None,
    ) -> None:
        super().__init__(max_batch, max_queue)
        self.model, self._on_step = model, on_step
        self._tokenizer = copy.deepcopy(model.tokenizer)  # calls of other threads change the model's own
        self._ends = end_tokens(model)
        self._batch = Batch(model)
        self._busy: Counter[str | None] = Counter()  # rows in the batch by memory
        self._held: Counter[str] = Counter()
        self._threads = [threading.Thread(target=self._run, name="koffkit-engine", daemon=True)]

    @property
    def active(self) -> int:
        """Rows of the batch."""
        return self._busy.total()

    def submit(self, requests: Sequence[Request]) -> list[Row]:
        """As every engine; the memories of those that wait are read ahead."""
        rows = super().submit(requests)
        with self._changed:
            if self._busy:
                self._read_ahead()
        return rows

    def _row(self, request: Request) -> Row:
        return Row.of(request, self._tokenizer, self._ends)

    @contextmanager
    def quiet(self, domain: str) -> Iterator[None]:
        """Wait until no row uses a memory, and admit none that wants it until the block ends."""
        with self._changed:
            self._held[domain] += 1
            while self._busy[domain] and not self._stopping:
                self._changed.wait()
        try:
            yield
        finally:
            with self._changed:
                self._held[domain] -= 1
                self._held += Counter()
                self._changed.notify_all()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._stopping or self._busy or self._admissible()):
                    self._changed.wait(TICK if self._waiting else None)
                    self._leave_queue()
                if self._stopping:
                    break
            self._turn()
        with self._changed:
            rest = [*self._batch.rows, *self._waiting]
            self._batch.clear()
            self._waiting.clear()
            self._busy.clear()
            self._changed.notify_all()
        for row in rest:
            if not row.done:
                row.fail(Stopped("the server is shutting down; the answer ends here."))

    def _turn(self) -> None:
        """One step, and before it who comes and who goes."""
        self._leave()
        newcomers = self._admit()
        if newcomers:
            self._join(newcomers)
            self._leave()
            with self._changed:
                self._read_ahead()
        if self._batch.rows:
            self._on_step(len(self._batch.rows))
            try:
                self._batch.step()
            except Exception as error:  # whatever it was, the next requests deserve a try
                logger.exception("a step failed")
                self._fail_all(error)

    def _leave(self) -> None:
        """Rows that are over leave the batch, and the queue."""
        now = time.monotonic()
        gone = {place for place, row in enumerate(self._batch.rows) if row.is_over(now)}
        with self._changed:
            self._leave_queue()
            self._no_longer_busy([self._batch.rows[place] for place in gone])
        if gone:
            self._batch.keep([place for place in range(len(self._batch.rows)) if place not in gone])

    def _no_longer_busy(self, rows: Sequence[Row]) -> None:
        self._busy.subtract(row.memory for row in rows)
        self._busy += Counter()
        if rows:
            self._changed.notify_all()

    def _read_ahead(self) -> None:
        """Let the memories of those that wait be read while the batch goes on."""
        wanted = dict.fromkeys(row.memory for row in self._waiting if row.memory not in self._held)
        with suppress(UsageError):  # who wants one that is gone is told so when its turn comes
            self.model.store.prefetch(*(name for name in wanted if name is not None))

    def _admissible(self) -> bool:
        return any(row.memory not in self._held for row in self._waiting)

    def _admit(self) -> list[Row]:
        """Take rows from the queue, the oldest first; they count as busy from now on."""
        taken: list[Row] = []
        with self._changed:
            free, longest = self.max_batch - len(self._batch.rows), 0
            for row in list(self._waiting):
                if len(taken) >= free:
                    break
                if row.memory in self._held:
                    continue
                longest = max(longest, len(row.request.ids))
                if taken and longest * (len(taken) + 1) > PREFILL_TOKENS:
                    break
                taken.append(row)
            for row in taken:
                self._waiting.remove(row)
            self._busy.update(row.memory for row in taken)
        return taken

    def _join(self, rows: Sequence[Row]) -> None:
        """Let rows join together; if that fails one at a time, so that only the guilty one is refused."""
        try:
            self._batch.join(rows)
        except Exception as error:
            if len(rows) > 1:
                for row in rows:
                    self._join([row])
                return
            rows[0].fail(self._reason(rows[0], error))
            with self._changed:
                self._no_longer_busy(rows)

    def _reason(self, row: Row, error: Exception) -> Exception:
        """Why a prompt failed."""
        if row.memory is not None and row.memory not in self.model.domains:
            return UnknownMemory(
                f"model: no memory {row.memory!r} any more; {near_name(row.memory, self.model.domains)}"
            )
        if not isinstance(error, KoffkitError):
            logger.error("a prompt failed", exc_info=error)
        return as_error(error)

    def _fail_all(self, error: Exception) -> None:
        rows = self._batch.rows
        self._batch.clear()
        for row in rows:
            if not row.done:
                row.fail(as_error(error))
        with self._changed:
            self._no_longer_busy(rows)


def end_tokens(model: Any) -> frozenset[int]:
    """The tokens that end an answer, of the generation config, or else of the config."""
    for config in (getattr(model.model, "generation_config", None), model.model.config):
        ends = getattr(config, "eos_token_id", None)
        if ends is not None:
            return frozenset(ends if isinstance(ends, list) else [ends])
    return frozenset()
