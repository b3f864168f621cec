"""`koffkit serve --upstream` before llama-server itself, as the wheel `xllamacpp` has it inside: in the
environment of the tests, or in the one that `make consumers` makes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest

from koffkit.embedded import path
from koffkit.runtime.model import KoffModel

from ..consumers.cases import Ready, quickstart
from ..consumers.environments import ENVIRONMENTS, ROOT

for package in ("fastapi", "uvicorn", "prometheus_client", "httpx", "gguf"):
    pytest.importorskip(package)
import httpx  # noqa: E402

from .test_serve_llama import before  # noqa: E402

CONSUMERS = ROOT / "tests" / "consumers"
THEIRS = ROOT / ENVIRONMENTS / "openai_llama" / "bin" / "python"
LANGUAGES = ("en", "de", "fr", "it", "es", "pt")
PROMPTS, TOKENS, SLOTS = 16, 32, 2
SERVER = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(CONSUMERS)!r})
import xllamacpp
from llama_cpp import params_of
params = params_of(Path(sys.argv[1]), False)
params.n_parallel, params.kv_unified = {SLOTS}, True
params.n_ctx *= {SLOTS}
server = xllamacpp.Server(params)
print(server.listening_address, flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def python() -> Path:
    """One that has llama-server."""
    if find_spec("xllamacpp") is not None:
        return Path(sys.executable)
    if not THEIRS.is_file():
        pytest.skip("xllamacpp is neither here nor in build/consumers/openai_llama")
    return THEIRS


@pytest.fixture(scope="module")
def ready(python: Path, tmp_path_factory: pytest.TempPathFactory) -> Ready:
    return quickstart(tmp_path_factory.mktemp("quickstart"))


@pytest.fixture(scope="module")
def gguf(ready: Ready) -> Path:
    from koffkit.exporters import export

    out = ready.run.parent / "gguf"
    export(ready.run, out, "gguf", {"type": "f32", "cache_type": "f32"})
    return out


@contextmanager
def llama_server(python: Path, export: Path) -> Iterator[str]:
    """Its address."""
    command = [python, "-c", SERVER, export]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            address = next((line for line in server.stdout if line.startswith("http")), "")
            assert address, "llama-server ended"
            yield address.strip()
        finally:
            server.kill()


@pytest.mark.slow
def test_six_clients_at_once_get_the_texts_of_generate(python: Path, ready: Ready, gguf: Path) -> None:
    """Each of six memories and the bare backbone, several requests in flight in the two slots."""
    lines = [path(f"facts/{name}.jsonl").read_text(encoding="utf-8").splitlines() for name in LANGUAGES]
    facts = [json.loads(line)["prompt"] for row in zip(*lines, strict=False) for line in row]
    prompts = list(dict.fromkeys(facts))[:PROMPTS]
    model = KoffModel.from_pretrained(ready.export, dtype="float32")
    names = ["none", *model.domains]
    assert len(names) == 7
    expected = {
        (name, prompt): model.complete(prompt, None if name == "none" else name, TOKENS)
        for name in names
        for prompt in prompts
    }
    assert len(set(expected.values())) > PROMPTS  # memories change what is said
    with llama_server(python, gguf) as url, before(ready.export, gguf, url, max_queue=64) as client:

        def answer(asked: tuple[str, str]) -> str:
            name, prompt = asked
            body = {"model": name, "prompt": prompt, "temperature": 0, "max_tokens": TOKENS}
            found: httpx.Response = client.post("/v1/completions", json=body)
            return str(found.json()["choices"][0]["text"])

        order = [(name, prompt) for prompt in prompts for name in names]  # neighbours have other memories
        with ThreadPoolExecutor(len(LANGUAGES)) as clients:
            found = dict(zip(order, clients.map(answer, order), strict=True))
        assert client.get("/health").json()["status"] == "ok"
    assert found == expected


@pytest.mark.slow
def test_health_when_llama_server_is_gone(python: Path, ready: Ready, gguf: Path) -> None:
    with ExitStack() as stack:
        with llama_server(python, gguf) as url:
            client = stack.enter_context(before(ready.export, gguf, url))
            assert client.get("/health").status_code == 200
        answer = client.get("/health")
        assert answer.status_code == 503 and "llama-server does not answer" in answer.json()["status"]
