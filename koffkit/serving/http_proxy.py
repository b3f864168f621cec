"""`koffkit serve --upstream`: no weights here. The router picks a memory, another server of OpenAI's API
answers with it, and what it says is passed on byte by byte.

The other server knows a memory as a model of its name, and the bare backbone by the export's, as `vllm serve`
does with an export of format `vllm`. A KV half is asked for as that export's README says: with sentinel
tokens before a prompt, or through the chat template.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, Response, StreamingResponse

from ..errors import UsageError, near_name
from .engine_rows import NO_MEMORY
from .http import add_figures_and_page, handle_errors, model_entry
from .http_answer import CLIENT_GONE, ClientGone, unless_gone
from .http_errors import ApiError, invalid
from .http_guard import App, Guard
from .http_metrics import Metrics
from .http_schema import last_words
from .http_service import AUTO

CONNECT_SECONDS = 5.0
PASSED_ON = ("content-type", "retry-after", "x-request-id")
Body = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Upstream:
    """The other server, and what of the export is needed to ask it.

    Args:
        url: its address, with or without `/v1`.
        backbone: its name for the bare backbone.
        memories: names of the memories.
        router: picks a memory; None: there is none.
        tokenizer: of the backbone, for KV memories; None: there are none.
        sentinels: by memory the token that stands for its KV half, and how many there are.
        chats: the other server's chat template takes memories with a KV half; False: chats with them are
            refused, since their KV half would be missing without a word.
        key: what the other server wants; None: nothing.
        seconds: between two parts of an answer, at most.
    """

    url: str
    backbone: str
    memories: list[str]
    router: Any = None
    tokenizer: Any = None
    sentinels: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    chats: bool = True
    key: str | None = None
    seconds: float = 300.0

    @property
    def names(self) -> list[str]:
        """What `model` may be."""
        return [*([AUTO] if self.router else []), NO_MEMORY, *self.memories]

    def rewritten(self, body: Body, *, chat: bool) -> tuple[Body, str | None, float | None]:
        """The request as the other server wants it, the memory, and how sure the router is of it.

        Args:
            body: what the client sent.
            chat: for `/v1/chat/completions`.

        Raises:
            ApiError: there is no such memory, the router cannot read the request, or a chat cannot ask for
                the memory.
        """
        name = body.get("model", self.names[0])
        if name not in self.names:
            message = f"model: no memory {name!r}; {near_name(str(name), self.names)}"
            raise ApiError(404, message, "model_not_found", "model")
        memory: str | None = None if name == NO_MEMORY else str(name)
        odds: float | None = None
        if name == AUTO:
            texts = [last_words(body.get("messages"))] if chat else self._texts(body.get("prompt"))
            found = self.router.route(texts, allowed=self.memories)
            if len({choice for choice, _ in found}) > 1:
                raise invalid("prompt: several prompts of different memories; send one at a time.", "prompt")
            memory, odds = found[0]
        body = body | {"model": self.backbone if memory is None else memory}
        if memory is not None and memory in self.sentinels:
            body = self._with_kv(body, memory, chat=chat)
        return body, memory, odds

    def _texts(self, prompt: Any) -> list[str]:
        prompts = prompt if isinstance(prompt, list) and prompt else [prompt]
        if not all(isinstance(text, str) for text in prompts):
            raise invalid("prompt: the router reads text, or several; name the memory for tokens.", "prompt")
        return prompts

    def _with_kv(self, body: Body, memory: str, *, chat: bool) -> Body:
        sentinel, count = self.sentinels[memory]
        if chat:
            if not self.chats:
                raise invalid(
                    f"messages: the other server's chat template does not take memory {memory!r} (its export "
                    "has none that does); ask /v1/completions.",
                    "messages",
                )
            given = body.get("chat_template_kwargs") or {}
            return body | {"chat_template_kwargs": {**given, "memory": memory}}
        prompt = body.get("prompt")
        many = isinstance(prompt, list) and bool(prompt) and not isinstance(prompt[0], int)
        prompts: list[Any] = list(prompt) if isinstance(prompt, list) and many else [prompt]
        told = [[sentinel] * count + self._ids(one) for one in prompts]
        return body | {"prompt": told if many else told[0]}

    def _ids(self, prompt: Any) -> list[Any]:
        """The tokens of a prompt, which may be tokens already."""
        if isinstance(prompt, str):
            return list(self.tokenizer(prompt, verbose=False)["input_ids"])
        if isinstance(prompt, list):
            return prompt
        raise invalid("prompt: must be a text, tokens, or several.", "prompt")


def create_proxy(
    upstream: Upstream, metrics: Metrics, *, key: str | None, loopback: bool, max_body: int
) -> App:
    """The ASGI app.

    Args:
        upstream: who answers.
        metrics: figures.
        key, loopback, max_body: as of `create_app`.
    """
    headers = {} if upstream.key is None else {"Authorization": f"Bearer {upstream.key}"}
    timeout = httpx.Timeout(upstream.seconds, connect=CONNECT_SECONDS)
    base = upstream.url.rstrip("/").removesuffix("/v1")
    client = httpx.AsyncClient(base_url=base, headers=headers, timeout=timeout, trust_env=False)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with client:
            yield

    app = FastAPI(title="koffkit", docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    handle_errors(app, metrics)
    add_figures_and_page(app, metrics)

    @app.post("/v1/completions")
    async def completions(http: Request) -> Response:
        return await _pass_on(client, upstream, metrics, http, chat=False)

    @app.post("/v1/chat/completions")
    async def chat_completions(http: Request) -> Response:
        return await _pass_on(client, upstream, metrics, http, chat=True)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [model_entry(name) for name in upstream.names]}

    @app.get("/health")
    async def health() -> Response:
        try:
            found = (await client.get("/v1/models", timeout=CONNECT_SECONDS)).is_success
        except httpx.HTTPError:
            found = False
        state = {"memories": upstream.memories, "router": upstream.router is not None}
        state |= {"chat": upstream.chats, "status": "ok" if found else "the other server does not answer"}
        return JSONResponse(state, 200 if found else 503)

    return Guard(app, key, loopback, max_body, metrics.refused)


async def _pass_on(
    client: httpx.AsyncClient, upstream: Upstream, metrics: Metrics, http: Request, *, chat: bool
) -> Response:
    try:
        body = json.loads(await http.body())
    except (ValueError, RecursionError):
        raise invalid("the body is not JSON.", code="invalid_json") from None
    if not isinstance(body, dict):
        raise invalid("body: must be a JSON object.")
    told, memory, odds = await run_in_threadpool(upstream.rewritten, body, chat=chat)
    request, began = client.build_request("POST", http.url.path, json=told), time.monotonic()
    try:
        response = await unless_gone(http, client.send(request, stream=True))
    except ClientGone:
        return Response(status_code=CLIENT_GONE)
    except httpx.TimeoutException:
        raise ApiError(504, "the other server does not answer in time.", "timeout") from None
    except httpx.HTTPError as error:
        raise ApiError(
            502, f"the other server cannot be asked ({type(error).__name__}); check --upstream.", "upstream"
        ) from None
    headers = {name: response.headers[name] for name in PASSED_ON if name in response.headers}
    headers["X-Koffkit-Memory"] = memory or NO_MEMORY
    if odds is not None:
        headers["X-Koffkit-Probability"] = f"{odds:.6f}"

    async def parts() -> AsyncIterator[bytes]:
        status = CLIENT_GONE
        try:
            async for part in response.aiter_bytes():
                yield part
            status = response.status_code
        finally:
            metrics.answered(memory, status, 0, 0, time.monotonic() - began)
            await response.aclose()

    return StreamingResponse(parts(), response.status_code, headers)


def require_usable(router: Any) -> None:
    """Refuse a router that reads hidden states of a backbone, which is not here.

    Raises:
        UsageError: it does.
    """
    from ..router import Router

    if router is not None and type(router).read_backbone is not Router.read_backbone:
        raise UsageError(
            f"--upstream: the router of kind {router.kind} reads the backbone's hidden states, and no "
            "weights are loaded; use kind ngrams or encoder, or leave --upstream out."
        )
