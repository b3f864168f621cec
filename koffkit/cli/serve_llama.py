"""`koffkit serve --upstream` before llama-server: the router and OpenAI's API here, the weights there."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from .console import RichProgress, quiet_libraries
from .heartbeat import rest

if TYPE_CHECKING:
    from ..artefact.export import Export
    from ..serving.http_guard import App
    from ..serving.http_service import Service
    from ..serving.llama_engine import LlamaEngine
    from ..serving.llama_served import LlamaServing

UPSTREAM_KEY_VARIABLE = "KOFFKIT_UPSTREAM_KEY"


def upstream_key() -> str | None:
    """What the other server wants; None: nothing."""
    return os.environ.get(UPSTREAM_KEY_VARIABLE, "").strip() or None


def serve_llama(export: Export, serving: LlamaServing, url: str, bound: Any, **options: Any) -> None:
    """Serve what llama-server runs.

    Args:
        export, serving, url, options: see `before_llama`.
        bound: a socket.
    """
    quiet_libraries()
    from ..serving.http_run import address_of, run

    engine, service, app = before_llama(export, serving, url, **options)
    progress = RichProgress()
    with engine:
        progress.message(f"serving {', '.join(service.names)} by {url} at {address_of(bound)}")
        rest()
        run(app, bound)
        progress.message("stopped")


def before_llama(
    export: Export,
    serving: LlamaServing,
    url: str,
    *,
    max_queue: int,
    max_tokens: int | None,
    timeout: float,
    **limits: Any,
) -> tuple[LlamaEngine, Service, App]:
    """What stands before llama-server.

    Args:
        export: whose router picks, and whose tokenizer and chat template are used.
        serving: of the export of format gguf that llama-server runs.
        url: of llama-server.
        max_queue, max_tokens, timeout: as the options of `koffkit serve` say.
        limits: as for `create_app`.

    Raises:
        UsageError: llama-server does not answer, or runs another export; the router needs the backbone.
    """
    from ..arch.weights import vocab_size
    from ..checkpoint.files import load_tokenizer
    from ..checkpoint.spec import ModelSpec
    from ..router.routed import routed
    from ..serving.http import create_app
    from ..serving.http_metrics import Metrics
    from ..serving.http_proxy import require_usable
    from ..serving.http_service import Service
    from ..serving.llama_engine import LlamaEngine
    from ..serving.llama_served import LlamaModel

    router = routed(export)
    require_usable(router)
    tokenizer, metrics = load_tokenizer(export.backbone), Metrics()
    asked: dict[str, Any] = {"max_queue": max_queue, "key": upstream_key(), "seconds": timeout}
    engine = LlamaEngine(url, serving.memories, tokenizer, **asked)
    size = vocab_size(ModelSpec.open(export.backbone).config)
    context = min(serving.context, engine.context)
    model = LlamaModel(list(serving.memories), tokenizer, router, vocab_size=size, context=context)
    service = Service(model, engine, max_tokens=max_tokens, seconds=timeout)
    metrics.watch(engine, model)
    return engine, service, create_app(service, None, metrics, **limits)
