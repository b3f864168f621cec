"""`koffkit serve --upstream` before llama-server, of which the tests have a stand-in that keeps its rules: a
slot forgets its state when its adapters change, and looks up what it has read by tokens."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from ..conftest import Koffkit, Shipped

for package in ("fastapi", "uvicorn", "prometheus_client", "httpx"):
    pytest.importorskip(package)
import httpx  # noqa: E402

from ..served import wait_for  # noqa: E402
from .test_serve_upstream import running  # noqa: E402

MEMORIES = {
    "north": {"lora": "memories/north.gguf", "kv": {"tokens": 4, "sentinel": 7, "file": "north.state"}},
    "south": {"lora": "memories/south.gguf"},
}


class Llama(ThreadingHTTPServer):
    """The stand-in. It writes the name of its slot's memory, and how many tokens it had read before."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.adapters = ["/some/where/memories/north.gguf", "/some/where/memories/south.gguf"]
        self.slots: list[dict[str, Any]] = [{"lora": None, "read": 0} for _ in range(2)]
        self.restores, self.forgets, self.busy, self.most = True, False, 0, 0
        self.wait, self.silent, self.well = threading.Event(), threading.Event(), True
        self.wait.set()
        self.silent.set()
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Answers(BaseHTTPRequestHandler):
    server: Llama

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        if self.path == "/health":
            self.server.silent.wait(10)
            loading = {"error": {"code": 503, "message": "Loading model"}}
            return self._say(*(({"status": "ok"}, 200) if self.server.well else (loading, 503)))
        if self.path == "/props":
            return self._say({"total_slots": 2, "default_generation_settings": {"n_ctx": 64}})
        return self._say([{"id": place, "path": path} for place, path in enumerate(self.server.adapters)])

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path.startswith("/slots/"):
            if not self.server.restores:
                return self._say({"error": {"message": "no available space"}}, 400)
            self.server.slots[int(self.path.split("/")[2].partition("?")[0])]["read"] = 4
            return self._say({})
        return self._complete(body)

    def _complete(self, body: dict[str, Any]) -> None:
        slot = self.server.slots[body["id_slot"]]
        if slot["lora"] != body["lora"]:
            slot |= {"lora": body["lora"], "read": 0}
        if body.get("stream"):
            self._write(body, slot)
        else:
            self._say({})

    def _write(self, body: dict[str, Any], slot: dict[str, Any]) -> None:
        with self.server.lock:
            self.server.busy += 1
            self.server.most = max(self.server.most, self.server.busy)
        self.server.wait.wait(10)
        on = [place for place, one in enumerate(body["lora"]) if one["scale"] == 1.0]
        found = slot["read"] if body["prompt"][:4] == [7] * 4 and not self.server.forgets else 0
        told = {"timings": {"cache_n": found}}
        parts = [f"{on} ", f"{found} ", f"{len(body['prompt'])}"][: body["n_predict"]]
        events = [{"content": part, "tokens": [1], "stop": False, **told} for part in parts]
        last = {"content": "", "stop": True, "stop_type": "limit", "tokens_predicted": len(parts), **told}
        self.send_response(200)
        self.end_headers()
        for event in [*events, last]:
            self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())
        with self.server.lock:
            self.server.busy -= 1

    def _say(self, tree: Any, status: int = 200) -> None:
        data = json.dumps(tree).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def there() -> Iterator[Llama]:
    with Llama() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()


@pytest.fixture
def gguf(shipped: Shipped, tmp_path: Path) -> Path:
    """As much of an export of that format as is looked at."""
    out = Path(shutil.copytree(shipped.export, tmp_path / "served"))
    manifest = json.loads((out / "koffkit.json").read_text())
    (out / "koffkit.json").write_text(json.dumps(manifest | {"format": "gguf", "seal": None}))
    (out / "serving.json").write_text(json.dumps({"context": 64, "memories": MEMORIES}))
    return out


@contextmanager
def before(export: Path, gguf: Path, url: str, **options: Any) -> Iterator[httpx.Client]:
    from koffkit.artefact.export import open_export
    from koffkit.cli.serve_llama import before_llama
    from koffkit.serving.llama_served import llama_serving

    serving = llama_serving(gguf)
    assert serving is not None
    settings: dict[str, Any] = {"max_queue": 8, "max_tokens": None, "timeout": 20.0} | options
    engine, _, app = before_llama(open_export(export), serving, url, **settings)
    with engine, running(app) as here, httpx.Client(base_url=here, timeout=30, trust_env=False) as client:
        yield client


def asked(client: httpx.Client, model: str, **more: Any) -> httpx.Response:
    body = {"model": model, "prompt": [5, 6], "temperature": 0, "max_tokens": 3, **more}
    return client.post("/v1/completions", json=body)


def test_every_request_gets_a_slot_with_its_memory(shipped: Shipped, gguf: Path, there: Llama) -> None:
    with before(shipped.export, gguf, there.url) as client:
        answers = [asked(client, name).json() for name in ("north", "south", "none", "north")]
        assert [answer["choices"][0]["text"] for answer in answers] == [
            "[0] 4 6",
            "[1] 0 2",
            "[] 0 2",
            "[0] 4 6",
        ]
        assert answers[0]["usage"] == {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5}
        assert answers[0]["choices"][0]["finish_reason"] == "length"
        assert answers[0]["choices"][0]["koffkit"] == {"memory": "north", "probability": None}
        chosen = asked(client, "auto", prompt="north bright lamp").json()["choices"][0]["koffkit"]
        assert chosen["probability"] > 0
        assert asked(client, "nroth").status_code == 404
        assert asked(client, "north", logprobs=3).status_code == 400
        assert (
            asked(client, "north", prompt=[5] * 60).status_code == 400
        )  # 64 positions, 4 of them the memory's
        with client.stream(
            "POST", "/v1/completions", json={"model": "north", "prompt": [5], "stream": True}
        ) as it:
            events = [json.loads(line[6:]) for line in it.iter_lines() if line.startswith("data: {")]
        assert "".join(event["choices"][0]["text"] for event in events) == "[0] 4 5"


def test_as_many_at_once_as_there_are_slots(shipped: Shipped, gguf: Path, there: Llama) -> None:
    with before(shipped.export, gguf, there.url, max_queue=1) as client:
        there.wait.clear()
        found: list[httpx.Response] = []
        threads = [threading.Thread(target=lambda: found.append(asked(client, "north"))) for _ in range(4)]
        for thread in threads:
            thread.start()
        wait_for(lambda: bool(found) and there.busy == 2)  # the queue is full: one of four is refused
        assert found[0].status_code == 429
        there.wait.set()
        for thread in threads:
            thread.join(20)
        assert [one.status_code for one in found[1:]] == [200] * 3 and there.most == 2


def test_sentinels_that_are_read_as_text_are_an_error(shipped: Shipped, gguf: Path, there: Llama) -> None:
    with before(shipped.export, gguf, there.url) as client:
        there.forgets = True
        refused = asked(client, "north")
        assert refused.status_code == 502 and "read the sentinels of north as text" in refused.text
        there.forgets, there.restores = False, False
        refused = asked(client, "north")
        assert refused.status_code == 502 and "no available space" in refused.text
        assert asked(client, "south").status_code == 200


def test_health_is_that_of_llama_server(
    shipped: Shipped, gguf: Path, there: Llama, monkeypatch: pytest.MonkeyPatch
) -> None:
    from koffkit.serving import llama_engine

    monkeypatch.setattr(llama_engine, "HEALTH_SECONDS", 1.0)
    with before(shipped.export, gguf, there.url) as client:

        def health() -> tuple[int, str]:
            found = client.get("/health")
            return found.status_code, found.json()["status"]

        assert health() == (200, "ok")
        there.well = False
        assert health() == (503, "llama-server refuses (status 503): Loading model")
        there.silent.clear()
        found: list[tuple[int, str]] = []
        asking = [threading.Thread(target=lambda: found.append(health())) for _ in range(3)]
        began = time.monotonic()
        for thread in asking:
            thread.start()
        time.sleep(0.2)
        assert client.get("/v1/models").status_code == 200  # the event loop does not wait with them
        assert time.monotonic() - began < 0.9 and not found
        for thread in asking:
            thread.join(10)
        there.silent.set()
        assert found == [(503, "llama-server does not answer (ReadTimeout)")] * 3
        there.shutdown()
        there.server_close()
        assert health() == (503, "llama-server does not answer (ConnectError)")


def test_a_server_that_says_nothing_does_not_hold_up_the_end(
    shipped: Shipped, gguf: Path, there: Llama
) -> None:
    from koffkit.checkpoint.files import load_tokenizer
    from koffkit.serving.engine_rows import Piece, Request, Sampling, Stopped
    from koffkit.serving.llama_engine import LlamaEngine
    from koffkit.serving.llama_served import llama_serving

    serving, said = llama_serving(gguf), list[Piece]()
    assert serving is not None
    engine = LlamaEngine(there.url, serving.memories, load_tokenizer(shipped.export / "backbone"))
    there.wait.clear()
    how = Sampling(max_tokens=3)
    with engine:
        for _ in range(3):  # two slots, so that the third waits
            engine.submit([Request(ids=[5], memory=None, sampling=how, listen=said.append)])
        wait_for(lambda: there.busy == 2 and engine.queued == 1)
        began = time.monotonic()
    assert time.monotonic() - began < 6  # the stand-in is silent for ten seconds
    assert isinstance(said[-1].error, Stopped)
    there.wait.set()


def test_another_server_is_refused(shipped: Shipped, gguf: Path, there: Llama, koffkit: Koffkit) -> None:
    command = ("serve", shipped.export, "--port", 0, "--upstream-export", gguf, "--upstream")
    dead = koffkit(*command, "http://127.0.0.1:9")
    assert dead.code == 2 and "does not answer as llama-server does" in dead.err
    there.adapters.reverse()
    other = koffkit(*command, there.url)
    assert other.code == 2 and "has the adapters ['south.gguf', 'north.gguf']" in other.err
    there.adapters.reverse()
    there.restores = False
    unable = koffkit(*command, there.url)
    assert unable.code == 2 and "--kv-unified" in unable.err
    (gguf / "serving.json").write_text('{"context": 3, "memories": {"north": 3}}')
    assert koffkit(*command, there.url).code == 4


def test_an_option_without_effect_is_refused(shipped: Shipped, gguf: Path, koffkit: Koffkit) -> None:
    command = (
        "serve",
        shipped.export,
        "--port",
        0,
        "--upstream-export",
        gguf,
        "--upstream",
        "http://127.0.0.1:9",
    )
    for option, value in (("--max-batch", 4), ("--upstream-backbone", "x"), ("--device", "cpu")):
        done = koffkit(*command, option, value)
        said = " ".join(done.err.split())
        assert done.code == 2 and f"{option}: has no effect before llama-server" in said
    taken = ("--max-queue", 3, "--max-tokens", 5, "--timeout", 9, "--max-body", 999)
    done = koffkit(*command, *taken)  # nobody is there
    assert done.code == 2 and "does not answer as llama-server does" in done.err
