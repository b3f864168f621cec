"""The HTTP server of an export: OpenAI's endpoints, health, figures and a page. Needs the extra `serve`."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from starlette.exceptions import HTTPException

from ..errors import KoffkitError
from .http_answer import answer
from .http_errors import ApiError, as_api_error, validation_error
from .http_guard import HEADERS, App, Guard
from .http_memories import Memories
from .http_metrics import Metrics
from .http_schema import ChatRequest, CompletionRequest, MemoryRequest
from .http_service import Service

PAGE_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def create_app(
    service: Service,
    memories: Memories | None,
    metrics: Metrics,
    *,
    key: str | None = None,
    loopback: bool = True,
    max_body: int = 1 << 20,
    admin: bool = False,
) -> App:
    """The ASGI app.

    Args:
        service: what answers.
        memories: what is loaded; None: another server's, which do not change.
        metrics: figures.
        key: the API key; None: none is asked for.
        loopback: answer requests to loopback names only.
        max_body: the most bytes of a request.
        admin: let clients load bundles from this machine's disk and unload memories.
    """
    app = FastAPI(title="koffkit", docs_url=None, redoc_url=None, openapi_url=None)
    handle_errors(app, metrics)
    _add_answers(app, service, metrics)
    _add_views(app, service, memories)
    add_figures_and_page(app, metrics)
    if admin and memories is not None:
        _add_admin(app, memories)
    return Guard(app, key, loopback, max_body, metrics.refused)


def handle_errors(app: FastAPI, metrics: Metrics) -> None:
    """Answer every error in OpenAI's shape.

    Args:
        app: the app.
        metrics: told of the status.
    """

    def respond(error: ApiError) -> JSONResponse:
        metrics.refused(error.status)
        return JSONResponse(error.body, error.status, error.headers | HEADERS)

    async def known(_: Request, error: Exception) -> JSONResponse:
        return respond(as_api_error(error))

    async def malformed(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        return respond(validation_error(list(error.errors())))

    async def unrouted(http: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        what = {404: "no such page", 405: "not with this method"}.get(error.status_code, str(error.detail))
        return respond(ApiError(error.status_code, f"{http.method} {http.url.path}: {what}.", "not_found"))

    app.add_exception_handler(ApiError, known)
    app.add_exception_handler(KoffkitError, known)
    app.add_exception_handler(RequestValidationError, malformed)
    app.add_exception_handler(HTTPException, unrouted)
    app.add_exception_handler(Exception, known)


def _add_answers(app: FastAPI, service: Service, metrics: Metrics) -> None:
    @app.post("/v1/completions")
    async def completions(asked: CompletionRequest, http: Request) -> Response:
        return await answer(service, metrics, asked, http, chat=False)

    @app.post("/v1/chat/completions")
    async def chat_completions(asked: ChatRequest, http: Request) -> Response:
        return await answer(service, metrics, asked, http, chat=True)


def _add_views(app: FastAPI, service: Service, memories: Memories | None) -> None:
    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [model_entry(name) for name in service.names]}

    @app.get("/v1/models/{name}")
    async def model(name: str) -> dict[str, Any]:
        service.require_name(name)
        return model_entry(name)

    @app.get("/health")
    async def health() -> Response:
        status = await run_in_threadpool(service.engine.health)
        state = {
            "status": status,
            "memories": service.model.domains,
            "router": service.has_router,
            "chat": service.chats,
            "queued": service.engine.queued,
            "active": service.engine.active,
            "problems": {} if memories is None else memories.problems,
        }
        return JSONResponse(state, 200 if status == "ok" else 503)


def add_figures_and_page(app: FastAPI, metrics: Metrics) -> None:
    """`/metrics` and `/`."""

    @app.get("/metrics")
    async def figures() -> Response:
        return Response(metrics.text(), media_type=METRICS_TYPE)

    @app.get("/")
    async def page() -> Response:
        text = (files(__package__) / "page.html").read_text(encoding="utf-8")
        return HTMLResponse(text, headers=HEADERS | {"Content-Security-Policy": PAGE_POLICY})


def _add_admin(app: FastAPI, memories: Memories) -> None:
    @app.post("/v1/memories")
    async def add(asked: MemoryRequest) -> dict[str, Any]:
        name = await run_in_threadpool(memories.add, Path(asked.path), replace=asked.replace)
        return {"id": name, "object": "memory", "loaded": True}

    @app.delete("/v1/memories/{name}")
    async def remove(name: str) -> dict[str, Any]:
        await run_in_threadpool(memories.remove, name)
        return {"id": name, "object": "memory", "loaded": False}


def model_entry(name: str) -> dict[str, Any]:
    """A memory as `/v1/models` lists it."""
    return {"id": name, "object": "model", "created": 0, "owned_by": "koffkit"}
