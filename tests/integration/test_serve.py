"""`koffkit serve` as clients of OpenAI's API meet it: a real server on loopback, a real client."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from koffkit import KoffModel

from ..conftest import Shipped
from ..exports import with_memories

for package in ("fastapi", "uvicorn", "prometheus_client", "httpx"):
    pytest.importorskip(package)
openai = pytest.importorskip("openai")

from ..served import Served, serving, wait_for  # noqa: E402

MORE = {"east": ("north", 1.0), "west": ("south", 1.0), "hill": ("north", -0.7), "dale": ("south", -1.3)}
NAMES = ["none", "north", "south", *MORE]
TURNS = "{% for turn in messages %}{{ turn['role'] }}: {{ turn['content'] }} {% endfor %}"
PATH = "/v1/completions"


@pytest.fixture(scope="module")
def model(restored: Shipped, tmp_path_factory: pytest.TempPathFactory) -> KoffModel:
    return KoffModel.from_pretrained(
        with_memories(restored.export, tmp_path_factory.mktemp("six") / "out", MORE)
    )


@pytest.fixture(scope="module")
def served(model: KoffModel) -> Iterator[Served]:
    model.tokenizer.chat_template = TURNS
    with serving(model, max_batch=6, pause=0.002, max_body=20_000) as served:
        yield served


@pytest.fixture(scope="module")
def client(served: Served) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0, timeout=30) as client:
        yield client


def asked(**changes: Any) -> dict[str, Any]:
    return {"model": "north", "prompt": "river stone", "temperature": 0, "max_tokens": 6} | changes


def test_completions(client: Any, model: KoffModel) -> None:
    answer = client.completions.create(**asked(prompt=["river stone", "lamp"], n=2))
    expected = model.generate(["river stone", "lamp"], memory="north", max_new_tokens=6)
    assert [choice.text for choice in answer.choices] == [text for text in expected for _ in range(2)]
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3] and answer.model == "north"
    read = sum(len(model.tokenizer(text).input_ids) for text in ("river stone", "lamp"))
    assert answer.usage.prompt_tokens == read and answer.usage.completion_tokens == 24
    ids = model.tokenizer("river stone").input_ids
    assert client.completions.create(**asked(prompt=ids)).choices[0].text == expected[0]
    assert len({client.completions.create(**asked(model=name)).choices[0].text for name in NAMES}) == len(
        NAMES
    )


def test_a_stream_has_the_same_text(client: Any) -> None:
    whole = client.completions.create(**asked(max_tokens=20))
    parts = list(
        client.completions.create(**asked(max_tokens=20), stream=True, stream_options={"include_usage": True})
    )
    assert "".join(part.choices[0].text for part in parts[:-1]) == whole.choices[0].text
    assert parts[-2].choices[0].finish_reason == "length" and len(parts) > 5
    assert parts[-1].usage == whole.usage and parts[-1].choices == []


def test_chat_with_the_router(client: Any, model: KoffModel) -> None:
    messages = [{"role": "user", "content": "quiet river"}, {"role": "assistant", "content": "stone"}]
    messages.append({"role": "user", "content": "north bright lamp"})
    ((memory, odds),) = model.route(["north bright lamp"])
    answer = client.chat.completions.create(
        model="auto", messages=messages, temperature=0, max_completion_tokens=5
    )
    choice = answer.choices[0]
    assert choice.koffkit == {"memory": memory, "probability": pytest.approx(odds, abs=1e-5)}
    prompt = model.tokenizer.apply_chat_template(messages, tokenize=False)
    assert choice.message.content == model.complete(prompt, memory=memory, max_new_tokens=5)
    parts = list(
        client.chat.completions.create(
            model=memory, messages=messages, temperature=0, max_tokens=5, stream=True
        )
    )
    assert parts[0].choices[0].delta.role == "assistant" and parts[0].choices[0].koffkit["memory"] == memory
    assert "".join(part.choices[0].delta.content or "" for part in parts) == choice.message.content


def test_models_and_health(client: Any, served: Served) -> None:
    client.completions.create(**asked(max_tokens=2))
    assert {entry.id for entry in client.models.list()} == {"auto", *NAMES}
    assert client.models.retrieve("east").id == "east"
    with served.client as plain:
        health = plain.get("/health").json()
        assert health["status"] == "ok" and sorted(health["memories"]) == sorted(NAMES[1:])
    assert served.figure('koffkit_tokens_total{kind="completion"') > 0
    assert served.figure("koffkit_memories") == 6


@pytest.mark.parametrize(
    ("changes", "status", "code", "text"),
    [
        ({"model": "norht"}, 404, "model_not_found", "did you mean north?"),
        ({"prompt": "stone " * 200}, 400, "context_length_exceeded", "the model reads 128"),
        ({"max_tokens": 127}, 400, "context_length_exceeded", "there is room for"),
        ({"max_tokens": 0}, 400, "invalid_value", "max_tokens: "),
        ({"temperature": -1}, 400, "invalid_value", "temperature: "),
        ({"temperature": "0"}, 400, "invalid_value", "temperature: must be a number"),
        ({"logprobs": 3}, 400, "unsupported_parameter", "logprobs is not supported here"),
        ({"colour": "red"}, 400, "unknown_parameter", "colour: not known here"),
        ({"prompt": [[5, 999999]]}, 400, "invalid_value", "token 999999"),
        ({"prompt": []}, 400, "invalid_value", "prompt: empty"),
        ({"prompt": ["x"] * 80}, 400, "invalid_value", "more than fit in the queue"),
        ({"prompt": "x" * 30_000}, 413, "too_large", "larger than 20,000 bytes"),
    ],
)
def test_what_cannot_be_answered(
    served: Served, changes: dict[str, Any], status: int, code: str, text: str
) -> None:
    response = served.post(PATH, asked(**changes))
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (status, code) and text in error["message"]
    assert error.keys() == {"message", "type", "param", "code"}


def test_what_is_no_request(served: Served) -> None:
    with served.client as client:
        answers = [
            client.post(PATH, content=b'{"model":', headers={"Content-Type": "application/json"}),
            client.post(PATH, content=b"[]", headers={"Content-Type": "application/json"}),
            client.post(PATH, content=b"{}", headers={"Content-Type": "text/plain"}),
            client.get("/v1/nothing"),
            client.get(PATH),
            client.get("/health", headers={"Host": "evil.example"}),
            client.post("/v1/memories", json={"path": "/"}),
            client.post(
                PATH, content=(b"x" * 999 for _ in range(40)), headers={"Content-Type": "application/json"}
            ),
        ]
    assert [one.status_code for one in answers] == [400, 400, 415, 404, 405, 403, 404, 413]
    assert all("message" in one.json()["error"] for one in answers)


def test_many_streams_on_many_memories_and_none_is_lost(served: Served, model: KoffModel) -> None:
    jobs = [(NAMES[place % len(NAMES)], f"river stone {'lamp ' * (place % 5)}") for place in range(14)]

    def stream(job: tuple[str, str]) -> str:
        with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as own:
            parts = own.completions.create(
                model=job[0], prompt=job[1], temperature=0, max_tokens=25, stream=True
            )
            return "".join(part.choices[0].text for part in parts)

    with ThreadPoolExecutor(len(jobs)) as pool:
        together = list(pool.map(stream, jobs))
    alone = [
        model.complete(prompt, memory=None if name == "none" else name, max_new_tokens=25)
        for name, prompt in jobs
    ]
    assert together == alone


def raw(served: Served, body: dict[str, Any]) -> socket.socket:
    """A connection on which a request was sent, and nothing read."""
    host, port = served.url.removeprefix("http://").split(":")
    data = json.dumps(body).encode()
    lines = [f"POST {PATH} HTTP/1.1", f"Host: {host}", "Content-Type: application/json"]
    head = "\r\n".join([*lines, f"Content-Length: {len(data)}", "", ""])
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # so that what is not read holds up
    connection.settimeout(20)
    connection.connect((host, int(port)))
    connection.sendall(head.encode() + data)
    return connection


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_vanishes_frees_its_row(model: KoffModel, stream: bool) -> None:
    with serving(model, max_batch=1, pause=0.05) as served:
        connection = raw(served, asked(max_tokens=100, stream=stream))
        if stream:
            assert b"200 OK" in connection.recv(4096)
        wait_for(lambda: served.engine.active == 1)
        before = time.monotonic()
        connection.close()
        wait_for(lambda: served.engine.active == 0)
        assert time.monotonic() - before < 4  # all 100 tokens would take 5 seconds
        assert served.post(PATH, asked()).status_code == 200
        assert served.figure('koffkit_requests_total{memory="north",status="499"}') == 1


def test_a_slow_client_gets_everything(served: Served) -> None:
    slow = raw(served, asked(max_tokens=100, stream=True, n=12))
    others = [served.post(PATH, asked(model=name)).status_code for name in NAMES]
    assert others == [200] * len(NAMES)
    received = b""
    while b"[DONE]" not in received[-200:]:
        received += slow.recv(3000)
    slow.close()
    assert received.count(b'"finish_reason":"length"') == 12


def test_a_client_that_reads_nothing_holds_up_nobody(served: Served) -> None:
    """The engine is done with an answer whether it is read or not; behind a real socket buffers hide it."""
    body = json.dumps(asked(max_tokens=60, stream=True)).encode()
    headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": PATH, "query_string": b"", "headers": headers}

    async def ask() -> int:
        read, sent = asyncio.Event(), 0
        messages = [{"type": "http.request", "body": body}]

        async def receive() -> Any:
            return messages.pop() if messages else await asyncio.Event().wait()

        async def send(message: Any) -> None:
            nonlocal sent
            await read.wait()
            sent += len(message.get("body", b""))

        task = asyncio.ensure_future(served.app(scope, receive, send))
        await asyncio.to_thread(wait_for, lambda: served.engine.active == 1)
        await asyncio.to_thread(wait_for, lambda: served.engine.active == 0)
        read.set()
        await task
        return sent

    assert asyncio.run(ask()) > 3000


def test_a_full_queue_and_a_limit_of_time(model: KoffModel) -> None:
    with serving(model, max_batch=1, max_queue=1, pause=0.05, seconds=1.5) as served:
        first, second = raw(served, asked(max_tokens=100)), raw(served, asked(max_tokens=100))
        wait_for(lambda: served.engine.active == 1 and served.engine.queued == 1)
        full = served.post(PATH, asked())
        assert full.status_code == 429 and full.headers["Retry-After"] == "1"
        assert full.json()["error"]["code"] == "queue_full"
        for connection in (first, second):
            assert b"504" in connection.recv(4096) and connection.close() is None


def test_an_error_in_a_stream_is_an_event(model: KoffModel) -> None:
    body = asked(max_tokens=100, stream=True)
    with (
        serving(model, pause=0.05, seconds=0.5) as served,
        served.client as client,
        client.stream("POST", PATH, json=body) as response,
    ):
        events = [line for line in response.iter_lines() if line]
    assert response.status_code == 200 and len(events) > 3
    assert json.loads(events[-1].removeprefix("data: "))["error"]["code"] == "timeout"


def test_a_key(model: KoffModel) -> None:
    with serving(model, key="secret", loopback=False) as served:
        codes = [
            served.post(
                PATH, asked(), headers={"Authorization": f"Bearer {key}", "Host": "elsewhere"}
            ).status_code
            for key in ("x", "secre", "secret")
        ]
        with served.client as client:
            codes += [client.get(path).status_code for path in ("/v1/models", "/metrics", "/health", "/")]
    assert codes == [401, 401, 200, 401, 401, 200, 200]
