"""Answering a request: pieces from the engine's thread to the client, as long as there is one."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Coroutine, Sequence
from functools import partial
from typing import Any, TypeVar

from fastapi import Request as HttpRequest
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, Response, StreamingResponse

from .engine_rows import Piece, Request
from .http_errors import as_api_error
from .http_metrics import Metrics
from .http_schema import Asked
from .http_service import Choice, Service
from .http_shapes import DONE, Answer, Shape, sse

T = TypeVar("T")
CLIENT_GONE = 499
STREAM_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


class ClientGone(Exception):
    """Nobody waits for the answer any more."""


class Running:
    """The answers to one request while they come.

    Args:
        service: see `Service`.
        metrics: told of what becomes of them.
        choices: what is wanted.

    Raises:
        QueueFull: there is no room.
    """

    def __init__(self, service: Service, metrics: Metrics, choices: Sequence[Choice]) -> None:
        self._metrics, self._began = metrics, time.monotonic()
        self.answers = [Answer(choice) for choice in choices]
        self._pieces: asyncio.Queue[tuple[int, Piece]] = asyncio.Queue()
        loop = asyncio.get_running_loop()
        requests = [
            Request(
                ids=choice.ids,
                memory=choice.memory,
                sampling=choice.sampling,
                listen=partial(self._listen, loop, place),
                seconds=service.seconds,
            )
            for place, choice in enumerate(choices)
        ]
        self._rows = service.engine.submit(requests)
        self._open = set(range(len(choices)))

    def _listen(self, loop: asyncio.AbstractEventLoop, place: int, piece: Piece) -> None:
        loop.call_soon_threadsafe(self._pieces.put_nowait, (place, piece))

    @property
    def is_open(self) -> bool:
        """Whether more will come."""
        return bool(self._open)

    async def next(self) -> tuple[int, Piece]:
        """The next piece, and whose it is.

        Raises:
            Exception: the engine's error; the other answers are cancelled.
        """
        place, piece = await self._pieces.get()
        answer = self.answers[place]
        if not answer.num_tokens and piece.num_tokens:
            self._metrics.first_token(answer.choice.memory, time.monotonic() - self._began)
        if piece.error is not None:
            self.close(as_api_error(piece.error).status)
            raise piece.error
        answer.take(piece)
        if piece.is_last:
            self._count(place, 200)
        return place, piece

    def close(self, status: int = CLIENT_GONE) -> None:
        """Cancel what is not answered yet."""
        for place in sorted(self._open):
            self._rows[place].cancel()
            self._count(place, status)

    def _count(self, place: int, status: int) -> None:
        self._open.discard(place)
        answer, seconds = self.answers[place], time.monotonic() - self._began
        self._metrics.answered(
            answer.choice.memory, status, len(answer.choice.ids), answer.num_tokens, seconds
        )


async def answer(
    service: Service, metrics: Metrics, asked: Asked, http: HttpRequest, *, chat: bool
) -> Response:
    """The response to a request.

    Raises:
        ApiError: it cannot be answered.
        KoffkitError: the engine refuses, or fails before the first token.
    """
    choices = await run_in_threadpool(service.choices, asked)
    running = Running(service, metrics, choices)
    shape = Shape(chat=chat, model=_resolved(asked.model, choices))
    try:
        if not asked.stream:
            await unless_gone(http, _collect(running))
            return JSONResponse(shape.whole(running.answers))
        first = await unless_gone(http, running.next())  # what fails before it has a status of its own
    except ClientGone:
        return Response(status_code=CLIENT_GONE)
    finally:
        if not asked.stream:
            running.close()
    events = _events(running, shape, first, with_usage=asked.with_usage)
    return StreamingResponse(events, media_type="text/event-stream", headers=STREAM_HEADERS)


def _resolved(name: str, choices: Sequence[Choice]) -> str:
    """The name of the memory that answers, where it is one for all."""
    names = {choice.memory or "none" for choice in choices}
    return names.pop() if len(names) == 1 else name


async def _collect(running: Running) -> None:
    while running.is_open:
        await running.next()


async def _events(
    running: Running, shape: Shape, first: tuple[int, Piece], *, with_usage: bool
) -> AsyncIterator[str]:
    """All events of a stream. When the client goes, this is cancelled, and so are its rows."""
    try:
        for place, started in enumerate(running.answers):
            for event in shape.begin(place, started.choice):
                yield event
        for event in shape.part(*first):
            yield event
        while running.is_open:
            for event in shape.part(*await running.next()):
                yield event
        if with_usage:
            yield shape.usage_event(running.answers)
        yield DONE
    except (asyncio.CancelledError, GeneratorExit):
        raise
    except Exception as error:
        yield sse(as_api_error(error).body)
    finally:
        running.close()


async def unless_gone(http: HttpRequest, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled when the client goes.

    Raises:
        ClientGone: it has gone.
    """
    task, watch = asyncio.ensure_future(work), asyncio.ensure_future(_gone(http))
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone
        return task.result()
    finally:
        for other in (task, watch):
            other.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await other


async def _gone(http: HttpRequest) -> None:
    while (await http.receive())["type"] != "http.disconnect":
        pass
