"""Format `gguf`: the client of llama-server that ships with an export."""

from __future__ import annotations

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
from koffkit.exporters import export

from ...conftest import Shipped

pytest.importorskip("gguf")


@pytest.fixture(scope="module")
def made(shipped: Shipped, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("ask") / "out"
    export(shipped.run, out, "gguf")
    return out


def test_what_one_lora_has_read_is_not_for_another(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = (made / "README.md").read_text().split("```")[1]
    assert command.strip().startswith("llama-server") and "--cache-ram 0" in command
    spec = spec_from_file_location("ask", made / "ask.py")
    assert spec is not None and spec.loader is not None
    ask = module_from_spec(spec)
    spec.loader.exec_module(ask)
    sent: list[dict[str, Any]] = []

    def post(url: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
        sent.append(body)
        return {"timings": {"cache_n": 3}}

    monkeypatch.setattr(ask, "post", post)
    asked = {}
    for name, with_kv in (("none", True), ("north", False), ("north", True)):
        ask.complete("", 0, name, [5, 6], False, with_kv)
        asked[name, with_kv] = sent[-1]["cache_prompt"]
    assert asked == {("none", True): False, ("north", False): False, ("north", True): True}
