"""How consumers are asked: ports of their servers, and exports that a format refuses."""

from __future__ import annotations

import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from koffkit.errors import KoffkitError, UsageError

from . import asking, http_server
from .asking import Case


def test_a_port_is_free_and_not_one_that_another_server_is_handed(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", http_server.free_port()))
        busy = taken.getsockname()[1]
        assert 20_000 <= busy < 32_768
        drawn = iter([busy, busy, *range(20_000, 20_100)])
        monkeypatch.setattr(http_server.random, "randrange", lambda *_: next(drawn))
        assert http_server.free_port() != busy


def test_what_is_refused_is_asked_for_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[dict[str, Any]] = []

    def export(run: Path, target: Path, name: str, options: dict[str, Any]) -> None:
        made.append(options)
        if options:
            raise UsageError("no")

    monkeypatch.setattr(asking, "export", export)
    run: Any = SimpleNamespace(run=tmp_path, export=tmp_path)
    case = Case("tiny", lambda _: run, tmp_path)
    plain = SimpleNamespace(FORMAT="onnx", OPTIONS={"layout": "genai"})
    either = SimpleNamespace(FORMAT="onnx", OPTIONS={"layout": "genai"}, OTHERWISE={})
    with pytest.raises(KoffkitError, match="no"):
        case.artefact(plain, None)
    assert case.artefact(either, None) == case.artefact(either, None)
    assert made == [{"layout": "genai"}, {}]  # each once
