"""ONNX Runtime and onnxruntime-genai run an export of format `onnx`: skipped where they are not installed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from koffkit.exporters import export

from ..conftest import Shipped
from . import onnx_runtime
from .cases import TINY_TEXT, Ready
from .reference import Reference

pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def artefact(shipped: Shipped, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("onnx_runtime") / "out"
    export(shipped.run, out, "onnx", {"layout": "genai"})
    return out


@pytest.fixture(scope="module")
def reference(shipped: Shipped) -> Reference:
    return Reference(shipped.export, Ready(shipped.run, shipped.export, TINY_TEXT).asked(), 32)


@pytest.mark.parametrize("name", ["onnx_runtime", "onnx_genai"])
def test_it_writes_what_koffkit_writes(
    artefact: Path, reference: Reference, tmp_path: Path, name: str
) -> None:
    if name == "onnx_genai":
        pytest.importorskip("onnxruntime_genai")
    settings = _answers(Path(onnx_runtime.__file__).with_name(f"{name}.py"), artefact, reference, tmp_path)
    assert list(settings) == ["alone", "padded batch"][: 2 if name == "onnx_runtime" else 1]
    for found in (found for given in settings.values() for found in reference.compare(given)):
        assert found is not None and found.max_abs is not None and found.kl is not None
        assert found.equal == found.tokens == 32
        assert found.max_abs <= max(10 * reference.floor, 1e-5)
        assert found.kl <= 1e-6
    assert len({str(ids) for ids in reference.ids.values()}) > 1, "memories change nothing: a weak test"


def _answers(program: Path, artefact: Path, reference: Reference, place: Path) -> dict[str, Any]:
    questions, answers = place / "questions.json", place / "answers.json"
    questions.write_text(json.dumps(reference.questions()))
    command = [sys.executable, program, artefact, questions, answers]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    settings: dict[str, Any] = json.loads(answers.read_text())["settings"]
    return settings
