"""`koffkit serve`."""

from __future__ import annotations

import os
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import DataError, UsageError
from .console import RichProgress, quiet_libraries
from .heartbeat import rest
from .place import device_option, dtype_option, verify_option
from .serve_llama import UPSTREAM_KEY_VARIABLE, serve_llama, upstream_key
from .serve_options import require_effect

if TYPE_CHECKING:
    from ..artefact.export import Export
    from ..serving.http_proxy import Upstream
    from ..serving.llama_served import LlamaServing

KEY_VARIABLE = "KOFFKIT_API_KEY"
NEEDED = ("fastapi", "httpx", "prometheus_client", "uvicorn")
MAX_KEY_BYTES = 4096


@click.command("serve")
@click.argument("export", type=click.Path(path_type=Path))
@click.option("--host", default="127.0.0.1", show_default=True, help="Other than loopback needs an API key.")
@click.option("--port", default=8000, show_default=True, type=click.IntRange(0, 65535), help="0: a free one.")
@click.option(
    "--api-key-file",
    type=click.Path(path_type=Path),
    help=f"A file with the key that clients must send; or the variable {KEY_VARIABLE}.",
)
@click.option(
    "--max-batch", default=16, show_default=True, type=click.IntRange(1, 4096), help="Rows at once."
)
@click.option(
    "--max-queue", default=64, show_default=True, type=click.IntRange(0), help="Requests that wait."
)
@click.option(
    "--max-tokens",
    type=click.IntRange(min=1),
    help="The most tokens of an answer that may be asked for.  [default: what the model has room for]",
)
@click.option(
    "--timeout",
    default=300.0,
    show_default=True,
    type=click.FloatRange(min=0, min_open=True),
    help="Seconds that an answer may take, waiting included.",
)
@click.option(
    "--max-body", default=1 << 20, show_default=True, type=click.IntRange(min=1), help="Bytes of a request."
)
@click.option(
    "--rescan",
    default=5.0,
    show_default=True,
    type=click.FloatRange(min=0.1),
    help="Seconds between two looks into the folder of memories; SIGHUP looks at once.",
)
@click.option(
    "--allow-admin", is_flag=True, help="Let clients load bundles from this machine's disk, and unload them."
)
@click.option(
    "--memory-budget",
    type=click.IntRange(min=1),
    help="The most bytes of memories to keep loaded.  [default: all of them]",
)
@click.option(
    "--host-memory-budget",
    type=click.IntRange(min=1),
    help="The most bytes of memories' files to keep in the CPU's memory, for an accelerator.",
)
@click.option(
    "--upstream",
    metavar="URL",
    help="Load no weights: the router picks a memory, and this server of OpenAI's API answers, asked for the "
    f"model of that name (its key: {UPSTREAM_KEY_VARIABLE}).",
)
@click.option(
    "--upstream-backbone",
    metavar="NAME",
    help="What --upstream calls the bare backbone.  [default: the export's name]",
)
@click.option(
    "--upstream-export",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="The export of format vllm or gguf that --upstream runs; it says how memories are asked for.",
)
@device_option
@dtype_option("auto")
@verify_option
@click.pass_context
def command(
    context: click.Context,
    /,
    export: Path,
    host: str,
    port: int,
    api_key_file: Path | None,
    upstream: str | None,
    upstream_backbone: str | None,
    upstream_export: Path | None,
    **options: Any,
) -> None:
    """Serve EXPORT to clients of OpenAI's API: `model` names the memory (`auto`: the router decides; `none`:
    the bare backbone). Memories that are added to the export, replaced or removed are followed."""
    _require_extra()
    key = _key(api_key_file)
    from ..serving.http_guard import is_loopback
    from ..serving.http_run import bind

    loopback = is_loopback(host)
    if not loopback and key is None:
        raise UsageError(
            f"--host {host}: reachable from elsewhere, which needs an API key; give --api-key-file or set "
            f"{KEY_VARIABLE}."
        )
    from ..artefact.export import open_export

    opened = open_export(export)
    llama = None if upstream is None or upstream_export is None else _llama(upstream_export)
    require_effect(context, upstream=upstream is not None, llama=llama is not None)
    with bind(host, port) as bound:
        if upstream is not None and llama is not None:
            kept = {name: options[name] for name in ("max_queue", "max_tokens", "timeout", "max_body")}
            serve_llama(opened, llama, upstream, bound, key=key, loopback=loopback, **kept)
        elif upstream is not None:
            asked = find_upstream(opened, upstream, upstream_backbone, upstream_export, options["timeout"])
            _pass_on(asked, bound, key=key, loopback=loopback, max_body=options["max_body"])
        else:
            _serve(opened, bound, key=key, loopback=loopback, **options)


def _llama(folder: Path) -> LlamaServing | None:
    from ..serving.llama_served import llama_serving

    return llama_serving(folder)


def _serve(
    export: Export,
    bound: Any,
    *,
    key: str | None,
    loopback: bool,
    max_batch: int,
    max_queue: int,
    max_tokens: int | None,
    timeout: float,
    max_body: int,
    rescan: float,
    allow_admin: bool,
    **loading: Any,
) -> None:
    """Load the model and serve it; `loading` is for that."""
    quiet_libraries()
    from ..serving.engine import Engine
    from ..serving.http import create_app
    from ..serving.http_memories import Memories
    from ..serving.http_metrics import Metrics
    from ..serving.http_run import address_of, run
    from ..serving.http_service import Service

    progress = RichProgress()
    model, metrics = _load(export.path, **loading), Metrics()
    with ExitStack() as stack:
        engine = Engine(model, max_batch=max_batch, max_queue=max_queue, on_step=metrics.stepped)

        def changed(what: str, words: str) -> None:
            metrics.changed(what)
            progress.message(words)

        memories = Memories(model, engine, export, rescan, changed)
        service = Service(model, engine, max_tokens=max_tokens, seconds=timeout)
        metrics.watch(engine, model)
        limits: dict[str, Any] = {
            "key": key,
            "loopback": loopback,
            "max_body": max_body,
            "admin": allow_admin,
        }
        app = create_app(service, memories, metrics, **limits)
        stack.enter_context(engine)
        stack.enter_context(memories)
        progress.message(f"serving {', '.join(service.names)} at {address_of(bound)}")
        rest()
        run(app, bound, look_now=memories.look_now)
        progress.message("stopped")


def find_upstream(
    export: Export, url: str, backbone: str | None, folder: Path | None, seconds: float
) -> Upstream:
    """Who answers in the place of a model, and what the export says of it.

    Args:
        export: whose router picks.
        url: of the other server.
        backbone: its name for the bare backbone; None: the export's.
        folder: the export that it runs; None: it knows nothing of KV memories.
        seconds: between two parts of an answer, at most.

    Raises:
        UsageError: the address is none, or the router needs the backbone.
    """
    if not url.startswith(("http://", "https://")):
        raise UsageError(f"--upstream {url}: it must begin with http:// or https://.")
    quiet_libraries()
    from ..checkpoint.files import load_tokenizer
    from ..router.routed import routed
    from ..serving.http_proxy import Upstream, require_usable
    from ..serving.sentinels import served_memories

    router = routed(export)
    require_usable(router)
    served = served_memories(export.bundles(), folder)
    if not served.chats:
        RichProgress().warn(
            f"--upstream-export {folder}: serving.json: chat_template: null; chats with memories that have a "
            "KV half are refused, /v1/completions takes them. A tokenizer with a chat template and a special "
            "token to spare for each memory makes an export that takes both."
        )
    return Upstream(
        url=url,
        backbone=backbone or export.manifest.name,
        memories=served.memories,
        router=router,
        tokenizer=load_tokenizer(export.backbone) if served.sentinels else None,
        sentinels=served.sentinels,
        chats=served.chats,
        key=upstream_key(),
        seconds=seconds,
    )


def _pass_on(upstream: Upstream, bound: Any, *, key: str | None, loopback: bool, max_body: int) -> None:
    from ..serving.http_metrics import Metrics
    from ..serving.http_proxy import create_proxy
    from ..serving.http_run import address_of, run

    app = create_proxy(upstream, Metrics(), key=key, loopback=loopback, max_body=max_body)
    names = ", ".join(upstream.names)
    RichProgress().message(f"passing on {names} to {upstream.url} at {address_of(bound)}")
    rest()
    run(app, bound)
    RichProgress().message("stopped")


def _load(path: Path, device: str | None, **options: Any) -> Any:
    from ..devices import find_device
    from ..runtime.model import KoffModel

    RichProgress().message(f"loading {path}")
    return KoffModel.from_pretrained(path, device=find_device(device), **options)


def _require_extra() -> None:
    """Refuse to go on without the extra.

    Raises:
        UsageError: a package is missing.
    """
    missing = [module for module in NEEDED if find_spec(module) is None]
    if missing:
        raise UsageError(f"serve: {', '.join(missing)} is not installed; pip install 'koffkit[serve]'.")


def _key(path: Path | None) -> str | None:
    """The API key of a file or of the environment; None: there is none.

    Raises:
        DataError: the file cannot be read, or has no key.
    """
    if path is None:
        return os.environ.get(KEY_VARIABLE, "").strip() or None
    try:
        with path.open("rb") as file:
            key = file.read(MAX_KEY_BYTES).decode("ascii").strip()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is not ASCII text"
        raise DataError(f"--api-key-file {path}: {reason}; name a file with one line, the key.") from None
    if not key or any(sign.isspace() for sign in key):
        raise DataError(f"--api-key-file {path}: it must have one line, the key.")
    return key
