"""Answers by llama-server with an export of format `gguf`, in the place of the engine that has weights.

llama-server knows no memories by name. A request says how strongly each LoRA adapter counts; a KV half is the
state of a slot, which is restored before it reads a prompt that begins with the memory's sentinels. So every
slot has a thread here, which puts the memory of its request into the slot first.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import Any

import httpx

from ..errors import KoffkitError, UsageError
from .engine_queue import TICK, RequestQueue
from .engine_rows import Piece, Request, Row, Stopped, as_error
from .http_errors import ApiError
from .llama_served import LlamaMemory, LlamaState

logger = logging.getLogger(__name__)
CONNECT_SECONDS = 5.0
HEALTH_SECONDS = 2.0
"""Within which llama-server must say that it is well; it does so while it computes, too."""
REMEDY = "start it as the README of that export says"


class LlamaEngine(RequestQueue):
    """Answers requests; a context manager, which starts and stops its threads.

    Args:
        url: of llama-server, with or without `/v1`.
        memories: by name, in the order in which llama-server numbers their adapters.
        tokenizer: of the backbone.
        max_queue: the most requests that wait.
        key: what llama-server wants; None: nothing.
        seconds: between two parts of an answer, at most.

    Attributes:
        max_batch: the slots of llama-server.
        context: positions that a slot has for a prompt and its answer, beside the longest KV half.

    Raises:
        UsageError: it does not answer, has other adapters than these memories, or cannot restore KV halves.
    """

    _patience = 2.0  # who waits for the other server is left behind

    def __init__(
        self,
        url: str,
        memories: Mapping[str, LlamaMemory],
        tokenizer: Any,
        *,
        max_queue: int = 64,
        key: str | None = None,
        seconds: float = 300.0,
    ) -> None:
        self._memories, self._tokenizer, self._active = memories, tokenizer, 0
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        timeout = httpx.Timeout(seconds, connect=CONNECT_SECONDS)
        base = url.rstrip("/").removesuffix("/v1")
        limits = httpx.Limits(max_keepalive_connections=0)  # llama-server closes them without a word
        self._client = httpx.Client(
            base_url=base, headers=headers, timeout=timeout, limits=limits, trust_env=False
        )
        self._adapters = [name for name, memory in memories.items() if memory.lora is not None]
        slots, positions = self._slots(url)
        super().__init__(slots, max_queue)
        halves = [memory.kv for memory in memories.values() if memory.kv is not None]
        self.context = positions - max((half.tokens for half in halves), default=0)
        if halves:
            self._require_restored(url, halves[0])
        self._threads = [
            threading.Thread(target=self._run, args=(slot,), name=f"koffkit-slot-{slot}", daemon=True)
            for slot in range(slots)
        ]

    def _slots(self, url: str) -> tuple[int, int]:
        """How many slots llama-server has, and positions in each, once it is known to run this export."""
        try:
            properties = self._asked("GET", "/props")
            adapters = self._asked("GET", "/lora-adapters")
            slots = int(properties["total_slots"])
            positions = int(properties["default_generation_settings"]["n_ctx"])
            found = [PurePath(entry["path"]).name for entry in adapters]
        except (httpx.HTTPError, ApiError, ValueError, KeyError, TypeError) as error:
            raise UsageError(
                f"--upstream {url}: does not answer as llama-server does ({type(error).__name__}); {REMEDY}."
            ) from None
        wanted = [PurePath(str(self._memories[name].lora)).name for name in self._adapters]
        if found != wanted:
            raise UsageError(
                f"--upstream {url}: has the adapters {found}, and --upstream-export has {wanted}; {REMEDY}."
            )
        return slots, positions

    def _require_restored(self, url: str, half: LlamaState) -> None:
        """Refuse a server that cannot take KV halves."""
        try:
            self._restore(0, half)
        except (httpx.HTTPError, ApiError) as error:
            raise UsageError(
                f"--upstream {url}: cannot restore {half.file} ({error}); {REMEDY}, with -np 1 or with "
                "--kv-unified."
            ) from None

    def stop(self) -> None:
        """Who still waits for an answer gets `Stopped`, after the next token of it."""
        super().stop()
        with self._changed:
            rest = list(self._waiting)
            self._waiting.clear()
        for row in rest:
            row.fail(_stopped())
        self._client.close()

    @property
    def active(self) -> int:
        return self._active

    def health(self) -> str:
        found = super().health()
        if found != "ok":
            return found
        try:
            response = self._client.get("/health", timeout=HEALTH_SECONDS)
        except httpx.HTTPError as error:
            return f"llama-server does not answer ({type(error).__name__})"
        return "ok" if response.is_success else str(_refused(response))

    def _row(self, request: Request) -> Row:
        return Row.of(request, self._tokenizer, frozenset(), samples=False)

    def _run(self, slot: int) -> None:
        while (row := self._next()) is not None:
            try:
                self._answer(slot, row)
            except httpx.HTTPError as error:
                row.fail(_failed(f"llama-server cannot be asked ({type(error).__name__}); check --upstream."))
            except Exception as error:  # whatever it was, the next requests deserve a try
                if not isinstance(error, KoffkitError):
                    logger.exception("an answer failed")
                row.fail(as_error(error))
            finally:
                with self._changed:
                    self._active -= 1

    def _next(self) -> Row | None:
        """The oldest request that waits, which counts as active from now on; None: it is over."""
        with self._changed:
            while not self._stopping:
                self._leave_queue()
                if self._waiting:
                    self._active += 1
                    return self._waiting.popleft()
                self._changed.wait(TICK if self._waiting else None)
        return None

    def _answer(self, slot: int, row: Row) -> None:
        """Put the memory of a request into a slot, and pass on what comes."""
        adapters = enumerate(self._adapters)
        lora = [{"id": place, "scale": float(name == row.memory)} for place, name in adapters]
        half = None if row.memory is None else self._memories[row.memory].kv
        # a slot forgets what it has read when its adapters change: they are set first, and one token is read
        self._asked("POST", "/completion", {"prompt": [0], "n_predict": 0, "id_slot": slot, "lora": lora})
        front: list[int] = []
        if half is not None:
            self._restore(slot, half)
            front = [half.sentinel] * half.tokens
        body = _body(row, front) | {"id_slot": slot, "lora": lora}
        with self._client.stream("POST", "/completion", json=body) as response:
            if response.status_code != 200:
                response.read()
                raise _refused(response)
            for event in _events(response):
                if self._stopping:
                    raise _stopped()
                if row.is_over(time.monotonic()):  # leaving the block ends it there, too
                    break
                if (event.get("timings") or {}).get("cache_n", 0) < len(front):
                    raise _failed(f"llama-server read the sentinels of {row.memory} as text; {REMEDY}.")
                _tell(row, event)
        if not row.done and not row.cancelled:
            raise _failed("llama-server ended the answer before it was whole.")

    def _restore(self, slot: int, half: LlamaState) -> None:
        self._asked("POST", f"/slots/{slot}?action=restore", {"filename": half.file})

    def _asked(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        response = self._client.request(method, path, json=body)
        if response.status_code != 200:
            raise _refused(response)
        return response.json()


def _body(row: Row, front: list[int]) -> dict[str, Any]:
    """The request for llama-server. Its defaults sample from 40 tokens; ours are the model's own odds."""
    asked = row.request.sampling
    body: dict[str, Any] = {
        "prompt": [*front, *row.request.ids],
        "cache_prompt": bool(front),  # it finds what it has read by tokens alone, whatever adapter read them
        "n_predict": asked.max_tokens,
        "temperature": asked.temperature,
        "top_p": asked.top_p,
        "top_k": 0,
        "min_p": 0.0,
        "stop": list(asked.stop),
        "stream": True,
        "timings_per_token": True,
    }
    return body if asked.seed is None else body | {"seed": asked.seed % 2**32}


def _events(response: httpx.Response) -> Iterator[dict[str, Any]]:
    for line in response.iter_lines():
        if line.startswith("error: "):
            raise _failed(f"llama-server: {line.removeprefix('error: ')}")
        if line.startswith("data: {"):
            yield json.loads(line.removeprefix("data: "))


def _tell(row: Row, event: Mapping[str, Any]) -> None:
    text = str(event.get("content", ""))
    if not event.get("stop"):
        row.num_tokens += len(event.get("tokens") or [0])
        row.tell(Piece(text=text, num_tokens=row.num_tokens))
        return
    row.num_tokens = int(event.get("tokens_predicted", row.num_tokens))
    finish: Any = "length" if event.get("stop_type") == "limit" else "stop"
    row.tell(Piece(text=text, num_tokens=row.num_tokens, finish=finish))


def _refused(response: httpx.Response) -> ApiError:
    try:
        reason = response.json()["error"]["message"]
    except (ValueError, KeyError, TypeError):
        reason = response.text.strip().partition("\n")[0]
    return _failed(f"llama-server refuses (status {response.status_code}): {reason}")


def _failed(message: str) -> ApiError:
    """The other server is at fault, not the request."""
    return ApiError(502, message, "upstream")


def _stopped() -> Stopped:
    return Stopped("the server is shutting down; ask another one.")
