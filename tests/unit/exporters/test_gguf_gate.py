"""Format `gguf`: llama-server on what was written. It need not be installed: a stand-in answers."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
from koffkit.exporters import export

from koffkit.artefact.export import open_export
from koffkit.errors import IntegrityError
from koffkit.progress import Silent

from ...conftest import Shipped
from .conftest import write_as_float64_would

pytest.importorskip("gguf")
EXACT = {"type": "f32", "cache_type": "f32"}


class Warned(Silent):
    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, text: str) -> None:
        self.warnings.append(text)


@pytest.fixture
def server(shipped: Shipped, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """llama-server that writes what float64 would, `off` by so much; `fails`: it cannot start."""
    from koffkit.exporters.gguf import gate
    from koffkit.exporters.toolkit import programs

    how: dict[str, Any] = {"off": 0.0, "fails": False, "asked": []}

    def run(command: list[str], **_: Any) -> Any:
        if how["fails"]:
            return subprocess.CompletedProcess(command, 1, b"", b"log\nno such option")
        how["asked"].append(write_as_float64_would(shipped.export, command, how["off"]))
        return subprocess.CompletedProcess(command, 0, b"", b"")

    monkeypatch.setattr(gate, "find_spec", lambda name: name)
    monkeypatch.setattr(gate, "version", lambda name: "2030.1")
    monkeypatch.setattr(gate, "GREEDY", 4)
    monkeypatch.setattr(programs.subprocess, "run", run)
    return how


def test_what_it_computes_is_in_the_manifest(
    shipped: Shipped, tmp_path: Path, server: dict[str, Any]
) -> None:
    export(shipped.run, tmp_path / "out", "gguf", EXACT)
    found = open_export(tmp_path / "out", any_format=True).manifest.consumer
    assert found is not None and found.versions == {"xllamacpp": "2030.1"}
    assert found.greedy == {"none": 4, "north": 4, "south": 4} and found.tokens == 4
    assert max(found.max_abs.values()) < 1e-4 and max(found.kl.values()) < 1e-8
    assert "| south | " in (tmp_path / "out" / "README.md").read_text()
    (asked,) = server["asked"]
    assert asked["memories"] == [None, "north", "south"] and len(asked["suppress"]) > 0
    export(shipped.run, tmp_path / "lora", "gguf", {**EXACT, "kv": False})  # whole memories are not there
    assert server["asked"][-1]["memories"] == [None]


def test_what_differs_is_not_published(shipped: Shipped, tmp_path: Path, server: dict[str, Any]) -> None:
    server["off"] = 1e-2
    with pytest.raises(
        IntegrityError, match=r"memory none: in llama-server a log-probability differs by 0.01"
    ):
        export(shipped.run, tmp_path / "out", "gguf", EXACT)
    assert not list(tmp_path.iterdir())
    export(shipped.run, tmp_path / "out", "gguf", {"type": "f16"})  # rounds more: measured
    found = open_export(tmp_path / "out", any_format=True).manifest.consumer
    assert found is not None and min(found.max_abs.values()) == pytest.approx(1e-2, abs=1e-3)


def test_one_that_cannot_be_run_is_a_warning(
    shipped: Shipped, tmp_path: Path, server: dict[str, Any]
) -> None:
    server["fails"], said = True, Warned()
    export(shipped.run, tmp_path / "out", "gguf", EXACT, progress=said)
    assert open_export(tmp_path / "out", any_format=True).manifest.consumer is None
    assert any("could not run the export (no such option)" in text for text in said.warnings)
