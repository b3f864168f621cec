"""`koffkit serve --upstream`: another server answers, and is asked as `vllm serve` wants it."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from koffkit.checkpoint.files import load_tokenizer
from koffkit.errors import UsageError

from ..conftest import Koffkit, Shipped

for package in ("fastapi", "uvicorn", "prometheus_client", "httpx"):
    pytest.importorskip(package)
import httpx  # noqa: E402

from ..served import wait_for  # noqa: E402

EVENTS = [b'data: {"choices":[{"text":"a"}]}\n\n', "data: ä\n\n".encode(), b"data: [DONE]\n\n"]


class Other:
    """The other server: remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str] = []
        self.cancelled = threading.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        self.keys.append(dict(scope["headers"]).get(b"authorization", b"").decode())
        if scope["method"] == "POST":
            self.asked.append(json.loads(body))
        status = 418 if b"teapot" in body else 200
        kind = (b"content-type", b"text/event-stream")
        await send({"type": "http.response.start", "status": status, "headers": [kind]})
        for event in EVENTS:
            await send({"type": "http.response.body", "body": event, "more_body": True})
            if b"forever" in body:
                while (await receive())["type"] != "http.disconnect":
                    pass
                self.cancelled.set()
                return
        await send({"type": "http.response.body", "body": b""})


@contextmanager
def running(app: Any) -> Iterator[str]:
    from koffkit.serving.http_run import address_of, bind, server_of

    with bind("127.0.0.1", 0) as bound:
        server = server_of(app)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
        thread.start()
        wait_for(lambda: server.started)
        try:
            yield address_of(bound)
        finally:
            server.should_exit = True
            thread.join(20)


@pytest.fixture(scope="module")
def vllm(shipped: Shipped, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from koffkit.exporters import export

    out = tmp_path_factory.mktemp("vllm") / "out"
    export(shipped.run, out, "vllm")
    return out


@pytest.fixture(scope="module")
def chatting(vllm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The export as if its tokenizer had a chat template and special tokens to spare."""
    out = Path(shutil.copytree(vllm, tmp_path_factory.mktemp("chatting") / "out"))
    serving = json.loads((out / "serving.json").read_text())
    (out / "serving.json").write_text(json.dumps(serving | {"chat_template": "chat_template.jinja"}))
    return out


@contextmanager
def proxied(shipped: Shipped, served: Path) -> Iterator[tuple[Other, httpx.Client]]:
    from koffkit.artefact.export import open_export
    from koffkit.cli.serve import find_upstream
    from koffkit.serving.http_metrics import Metrics
    from koffkit.serving.http_proxy import create_proxy

    other = Other()
    with running(other) as there:
        upstream = find_upstream(open_export(shipped.export), f"{there}/v1", None, served, 20.0)
        app = create_proxy(upstream, Metrics(), key=None, loopback=True, max_body=10_000)
        with running(app) as here, httpx.Client(base_url=here, timeout=20, trust_env=False) as client:
            yield other, client


@pytest.fixture
def proxy(
    shipped: Shipped, chatting: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Other, httpx.Client]]:
    monkeypatch.setenv("KOFFKIT_UPSTREAM_KEY", "theirs")
    with proxied(shipped, chatting) as both:
        yield both


def test_a_memory_is_a_model_with_sentinels(vllm: Path, proxy: tuple[Other, httpx.Client]) -> None:
    other, client = proxy
    memories = json.loads((vllm / "serving.json").read_text())["memories"]
    kv = memories["north"]["kv"]
    ids = load_tokenizer(vllm / "backbone")("river").input_ids
    front = [kv["sentinel"]] * kv["tokens"]
    answer = client.post("/v1/completions", json={"model": "north", "prompt": "river", "top_k": 3})
    assert answer.content == b"".join(EVENTS) and answer.headers["x-koffkit-memory"] == "north"
    assert answer.headers["content-type"] == "text/event-stream"
    client.post("/v1/completions", json={"model": "north", "prompt": [[5, 6], [7]]})
    client.post("/v1/completions", json={"model": "none", "prompt": "river"})
    client.post("/v1/chat/completions", json={"model": "south", "messages": []})
    assert other.asked == [
        {"model": "north", "prompt": front + ids, "top_k": 3},
        {"model": "north", "prompt": [[*front, 5, 6], [*front, 7]]},
        {"model": "tiny", "prompt": "river"},
        {"model": "south", "messages": [], "chat_template_kwargs": {"memory": "south"}},
    ]
    assert set(other.keys) == {"Bearer theirs"}
    assert 'koffkit_requests_total{memory="north",status="200"} 2.0' in client.get("/metrics").text


def test_a_chat_without_the_kv_half_is_refused(
    shipped: Shipped, vllm: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The tokenizer has no chat template, so the other server has none that takes a memory."""
    assert json.loads((vllm / "serving.json").read_text())["chat_template"] is None
    with proxied(shipped, vllm) as (other, client):
        assert "chat_template: null; chats with memories that have a KV" in capsys.readouterr().err
        turns: dict[str, Any] = {"messages": [{"role": "user", "content": "river"}]}
        answer = client.post("/v1/chat/completions", json={"model": "north", **turns})
        assert answer.status_code == 400 and not other.asked
        error = answer.json()["error"]
        assert error["param"] == "messages" and "ask /v1/completions" in error["message"]
        assert client.get("/health").json()["chat"] is False
        assert client.post("/v1/completions", json={"model": "north", "prompt": "river"}).status_code == 200
        assert client.post("/v1/chat/completions", json={"model": "none", **turns}).status_code == 200
        assert other.asked[-1] == {"model": "tiny", **turns}


def test_only_what_vllm_serves_is_asked_in_its_way(shipped: Shipped, vllm: Path, tmp_path: Path) -> None:
    from koffkit.artefact.export import open_export
    from koffkit.cli.serve import find_upstream

    def ask(folder: Path) -> None:
        find_upstream(open_export(shipped.export), "http://127.0.0.1:9", None, folder, 5.0)

    wrong = r"upstream-export \S+export: an export of format hf; it must be of format vllm or gguf"
    with pytest.raises(UsageError, match=wrong):
        ask(shipped.export)
    (tmp_path / "old").mkdir()
    shutil.copy(vllm / "serving.json", tmp_path / "old")
    with pytest.raises(UsageError, match=r"old: no koffkit\.json; name an export of format vllm"):
        ask(tmp_path / "old")


def test_the_router_picks(shipped: Shipped, proxy: tuple[Other, httpx.Client]) -> None:
    from koffkit.artefact.export import open_export
    from koffkit.router.routed import routed

    other, client = proxy
    router = routed(open_export(shipped.export))
    assert router is not None
    ((memory, odds),) = router.route(["north bright lamp"])
    turns = [{"role": "user", "content": "north bright lamp"}]
    text = {"prompt": "north bright lamp"}
    for path, said in (("completions", text), ("chat/completions", {"messages": turns})):
        answer = client.post(f"/v1/{path}", json={"model": "auto", **said})
        assert answer.headers["x-koffkit-memory"] == (memory or "none")
        assert float(answer.headers["x-koffkit-probability"]) == pytest.approx(odds, abs=1e-5)
        assert other.asked[-1]["model"] == (memory or "tiny")
    names = {one["id"] for one in client.get("/v1/models").json()["data"]}
    assert names == {"auto", "none", "north", "south"}
    assert client.get("/health").json()["status"] == "ok"


def test_errors(proxy: tuple[Other, httpx.Client]) -> None:
    other, client = proxy
    path = "/v1/completions"
    assert client.post(path, json={"model": "nroth", "prompt": "x"}).status_code == 404
    assert client.post(path, json={"model": "north"}).status_code == 400
    assert client.post(path, json={"model": "auto", "prompt": [5]}).status_code == 400
    assert client.post(path, json=[]).status_code == 400
    assert client.post("/v1/chat/completions", json={"model": "auto", "messages": 3}).status_code == 400
    assert client.post(path, json={"model": "none", "prompt": "x" * 20_000}).status_code == 413
    assert not other.asked
    assert client.post(path, json={"model": "none", "prompt": "teapot"}).status_code == 418


def test_who_goes_is_not_answered_any_more(proxy: tuple[Other, httpx.Client]) -> None:
    other, client = proxy
    with client.stream("POST", "/v1/completions", json={"model": "none", "prompt": "forever"}) as response:
        assert next(response.iter_raw()) == EVENTS[0]
    assert other.cancelled.wait(10)


def test_what_cannot_be_passed_on(
    shipped: Shipped, vllm: Path, tmp_path: Path, koffkit: Koffkit, monkeypatch: pytest.MonkeyPatch
) -> None:
    from koffkit.artefact.export import open_export
    from koffkit.cli.serve import find_upstream
    from koffkit.router.ngrams import TextRouter
    from koffkit.serving.http_metrics import Metrics
    from koffkit.serving.http_proxy import create_proxy

    url = ("--port", 0, "--upstream", "http://127.0.0.1:9")
    refused = koffkit("serve", shipped.export, "--port", 0, "--upstream", "localhost:8000")
    assert refused.code == 2 and "must begin with http://" in refused.err
    refused = koffkit("serve", shipped.export, *url, "--upstream-export", shipped.export)
    assert refused.code == 2 and "must be of format vllm or gguf" in refused.err
    for damaged in ('{"memories": {"north": 3}, "chat_template": null}', '{"memories": {}}'):
        out = Path(shutil.copytree(vllm, tmp_path / "damaged", dirs_exist_ok=True))
        (out / "serving.json").write_text(damaged)
        assert koffkit("serve", shipped.export, *url, "--upstream-export", out).code == 4
    upstream = find_upstream(open_export(shipped.export), url[-1], "theirs", None, 5.0)
    assert (upstream.backbone, upstream.sentinels) == ("theirs", {})
    app = create_proxy(upstream, Metrics(), key=None, loopback=True, max_body=10_000)
    with running(app) as here, httpx.Client(base_url=here, timeout=20, trust_env=False) as client:
        assert client.post("/v1/completions", json={"model": "none", "prompt": "x"}).status_code == 502
        assert client.get("/health").status_code == 503
    monkeypatch.setattr(TextRouter, "read_backbone", lambda self, features: None)
    refused = koffkit("serve", shipped.export, *url)
    assert refused.code == 2 and "reads the backbone's hidden states" in refused.err


IDLE = [
    ("--max-batch", 4, "-np, vllm serve --max-num-seqs"),
    ("--rescan", 1, "start the other server and this one again"),
    ("--allow-admin", None, "export again, and start both"),
    ("--memory-budget", 1, "leave it out"),
    ("--host-memory-budget", 1, "leave it out"),
    ("--device", "cpu", "its own option"),
    ("--dtype", "auto", "its own option"),  # the default, but asked for
    ("--verify", None, "koffkit verify"),
    ("--max-queue", 64, "leave it out"),
    ("--max-tokens", 5, "--max-model-len"),
]


@pytest.mark.parametrize(("option", "value", "remedy"), IDLE)
def test_an_option_without_effect_is_refused(
    shipped: Shipped, koffkit: Koffkit, option: str, value: Any, remedy: str
) -> None:
    words = (option,) if value is None else (option, value)
    done = koffkit("serve", shipped.export, "--port", 0, "--upstream", "http://127.0.0.1:9", *words)
    said = " ".join(done.err.split())
    assert done.code == 2 and f"{option}: has no effect before another server" in said and remedy in said


@pytest.mark.parametrize("option", ["--upstream-backbone", "--upstream-export"])
def test_options_of_another_server_need_one(shipped: Shipped, koffkit: Koffkit, option: str) -> None:
    done = koffkit("serve", shipped.export, "--port", 0, option, "x")
    said = " ".join(done.err.split())
    assert done.code == 2 and f"{option}: has no effect without --upstream: nobody else answers" in said


def test_options_with_an_effect_are_taken(shipped: Shipped, koffkit: Koffkit) -> None:
    """The address, which is looked at last, is what is refused."""
    taken = (
        "--upstream-backbone",
        "x",
        "--timeout",
        9,
        "--max-body",
        999,
        "--host",
        "127.0.0.1",
        "--port",
        0,
    )
    done = koffkit("serve", shipped.export, "--upstream", "there:9", *taken)
    assert done.code == 2 and "must begin with http://" in done.err
