"""What the engine is asked for, what it answers, and a request while it is being answered."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from ..errors import KoffkitError, ResourceError, UsageError
from .engine_text import TextStream

if TYPE_CHECKING:
    from torch import Generator

logger = logging.getLogger(__name__)
Finish = Literal["stop", "length"]
NO_MEMORY = "none"
"""The name of the bare backbone, for users."""


class QueueFull(ResourceError):
    """More requests wait than the server lets."""


class Stopped(ResourceError):
    """The server is shutting down."""


class TimedOut(ResourceError):
    """A request took longer than the server lets it."""


class UnknownMemory(UsageError):
    """There is no memory of that name, or no longer."""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A part of an answer.

    Args:
        text: what is new; may be empty.
        num_tokens: tokens of the answer so far.
        finish: why it is the last one; None: more will come, unless there is an error.
        error: why there will be no more.
    """

    text: str = ""
    num_tokens: int = 0
    finish: Finish | None = None
    error: Exception | None = None

    @property
    def is_last(self) -> bool:
        return self.finish is not None or self.error is not None


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How tokens are chosen.

    Args:
        max_tokens: the most tokens of an answer.
        temperature: 0: the likeliest token.
        top_p: sample from the likeliest tokens that have this share of the odds.
        seed: of sampling; None: another one each time.
        stop: texts that end the answer.
    """

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class Request:
    """One prompt and what becomes of it.

    Args:
        ids: the prompt's tokens, at least one.
        memory: its memory; None: the bare backbone.
        sampling: how tokens are chosen.
        listen: gets every piece, in the engine's thread; it must not block.
        seconds: how long it may take, waiting included; None: as long as it takes.
    """

    ids: Sequence[int]
    memory: str | None
    sampling: Sampling
    listen: Callable[[Piece], None]
    seconds: float | None = None


@dataclass(eq=False)
class Row:
    """A request while it waits or is answered.

    Args:
        request: what was asked.
        text: the answer's text.
        ends: tokens that end an answer.
    """

    request: Request
    text: TextStream
    ends: frozenset[int]
    num_tokens: int = 0
    token: int = -1
    cancelled: bool = False
    done: bool = False
    generator: Generator | None = None
    deadline: float = field(default=float("inf"))

    @classmethod
    def of(cls, request: Request, tokenizer: Any, ends: frozenset[int], *, samples: bool = True) -> Row:
        """A request that has just come; `samples`: its tokens are chosen here."""
        row = cls(request, TextStream(tokenizer, request.sampling.stop), ends)
        if samples and request.sampling.temperature > 0:
            import torch

            seed = request.sampling.seed
            row.generator = torch.Generator().manual_seed(secrets.randbits(63) if seed is None else seed)
        if request.seconds is not None:
            row.deadline = time.monotonic() + request.seconds
        return row

    @property
    def memory(self) -> str | None:
        return self.request.memory

    @property
    def length(self) -> int:
        """Tokens whose keys and values are in the cache: all but the newest."""
        return len(self.request.ids) + self.num_tokens - 1

    def cancel(self) -> None:
        """Nobody waits for the answer any more; the row leaves before the next step."""
        self.cancelled = True

    def take(self, token: int) -> None:
        """The next token of the answer."""
        self.token = token
        self.num_tokens += 1
        if token in self.ends:
            return self._end("stop", self.text.finish())
        text = self.text.push(token)
        if self.text.stopped:
            return self._end("stop", text)
        if self.num_tokens >= self.request.sampling.max_tokens:
            return self._end("length", text + self.text.finish())
        return self.tell(Piece(text=text, num_tokens=self.num_tokens))

    def fail(self, error: Exception) -> None:
        """There will be no more of this answer."""
        self.tell(Piece(num_tokens=self.num_tokens, error=error))

    def is_over(self, now: float) -> bool:
        """Whether the row has to leave: it is done, nobody waits for it, or its time is up."""
        if not self.done and not self.cancelled and now > self.deadline:
            self.fail(
                TimedOut(
                    f"timeout: no answer within {self.request.seconds:g} s; ask for fewer tokens, or raise "
                    "--timeout."
                )
            )
        return self.done or self.cancelled

    def _end(self, why: Finish, text: str) -> None:
        stopped = why == "length" and self.text.stopped  # the last characters completed a stop string
        self.tell(Piece(text=text, num_tokens=self.num_tokens, finish="stop" if stopped else why))

    def tell(self, piece: Piece) -> None:
        """Pass a piece on to who asked."""
        self.done = self.done or piece.is_last
        if self.cancelled:
            return
        try:
            self.request.listen(piece)
        except Exception:  # who asked is gone; the other rows must not suffer
            logger.warning("nobody takes an answer any more", exc_info=True)
            self.cancelled = True


def as_error(error: Exception) -> Exception:
    """An error as clients may see it: nothing of the inside of a library."""
    if isinstance(error, KoffkitError):
        return error
    return ResourceError(f"the model failed ({type(error).__name__}); the server's log says more.")
