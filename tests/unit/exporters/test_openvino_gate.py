"""Format `openvino`: compressed and merged weights, refusals, and the gate; skipped without the extra."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from koffkit.exporters import export
from safetensors.numpy import load_file, save_file

from koffkit.artefact.export import open_export
from koffkit.artefact.manifest import Manifest
from koffkit.errors import IntegrityError, UsageError

from ...conftest import Koffkit, Shipped
from .conftest import learned, require_openvino

require_openvino()

from koffkit.exporters.openvino import files, gate, runtime  # noqa: E402
from koffkit.exporters.openvino.run import Pipeline  # noqa: E402

pytestmark = pytest.mark.usefixtures("converted_once")


@pytest.mark.parametrize(("weights", "least", "most"), [("int8", 1e-7, 1e-2), ("int4", 1e-5, 0.5)])
def test_compressed_weights_are_measured(
    shipped: Shipped,
    tmp_path: Path,
    openvino_export: Path,
    koffkit: Koffkit,
    weights: str,
    least: float,
    most: float,
) -> None:
    words = ["export", shipped.run, "--format", "openvino", "-o", f"weights={weights}", "--json"]
    done = koffkit(*words, "--output", tmp_path / "out")
    assert done.code == 0, done.err
    assert done.json["consumer"]["weights"] == weights and "nncf" not in done.err
    found = open_export(tmp_path / "out", any_format=True).manifest.consumer
    assert found is not None and found.to_json() == done.json["consumer"]
    assert all(least < value < most for value in found.kl.values()), found.kl
    sizes = [
        (folder / "backbone" / "openvino_model.bin").stat().st_size
        for folder in (openvino_export, tmp_path / "out")
    ]
    assert sizes[1] < 0.5 * sizes[0]


def test_a_merged_memory_is_one_dense_model(restored: Shipped, tmp_path: Path, koffkit: Koffkit) -> None:
    done = koffkit(
        "export",
        restored.run,
        "--format",
        "openvino",
        "--merge",
        "north",
        "--output",
        tmp_path / "out",
        "--json",
    )
    assert done.code == 0, done.err
    assert not (tmp_path / "out" / "memories").exists() and "KV half" in done.err
    assert done.json["merged"]["domain"] == "north" and done.json["consumer"]["greedy"] == {"none": 64}
    words = [sys.executable, "example.py", "none", "A prompt", "--tokens", "4"]
    subprocess.run(words, cwd=tmp_path / "out", check=True, capture_output=True)


def test_what_cannot_be_carried_is_refused_before_anything_is_written(
    restored: Shipped, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=r"format openvino: memories give neurons back.*--merge NAME"):
        export(restored.run, tmp_path / "out", "openvino")
    divided = {"layout": "ragged", "structures": ["v_channel"], "global_sparsity": 0.03}
    with pytest.raises(UsageError, match="format openvino: parts of heads are gone"):
        export(learned(tmp_path, mask=divided), tmp_path / "out", "openvino")
    assert not (tmp_path / "out").exists()


def test_a_missing_extra_is_named(shipped: Shipped, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "find_spec", lambda name: None if name == "nncf" else object())
    with pytest.raises(UsageError, match=r"extra is not installed \(nncf missing\); pip install 'koffkit"):
        export(shipped.run, tmp_path / "out", "openvino")


@pytest.mark.parametrize("what", ["lora_A", "memory_value"])
def test_a_memory_that_computes_something_else_is_not_published(
    shipped: Shipped, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    def damaged(*given: Any) -> Any:
        draft, checkpoint, bundles, adapters, *others = given
        path, tensors = adapters["south"]
        name = next(name for name in tensors if what in name and (what == "lora_A") != (".memory_" in name))
        name = name.replace("lora_A", "lora_B")
        wrong = {**tensors, name: 1.01 * tensors[name]}
        save_file(wrong, path)
        return real(draft, checkpoint, bundles, {**adapters, "south": (path, wrong)}, *others)

    real = gate.check_export
    monkeypatch.setattr(files, "check_export", damaged)
    with pytest.raises(IntegrityError, match=r"memory south: in OpenVINO the logits differ by .*published"):
        export(shipped.run, tmp_path / "out", "openvino")
    assert not (tmp_path / "out").exists()


def test_the_gate_sees_a_file_that_genai_reads_otherwise(
    shipped: Shipped, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """GenAI gets the memory without its KV half, the logits of OpenVINO all of it."""
    real = Pipeline.__init__

    def blind(self: Pipeline, folder: Path, adapters: Any) -> None:
        halved = {}
        for name, path in adapters.items():
            tensors = {key: value for key, value in load_file(path).items() if ".memory_" not in key}
            halved[name] = tmp_path / f"{name}.safetensors"
            save_file(tensors, halved[name])
        real(self, folder, halved)

    monkeypatch.setattr(Pipeline, "__init__", blind)
    with pytest.raises(IntegrityError, match=r"memory north: OpenVINO GenAI writes other text"):
        export(shipped.run, tmp_path / "out", "openvino")


def test_too_little_memory_to_run_it_is_a_warning(
    shipped: Shipped, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, koffkit: Koffkit
) -> None:
    monkeypatch.setattr(gate, "free_memory", lambda: 0)
    done = koffkit("export", shipped.run, "--format", "openvino", "--output", tmp_path / "out", "--json")
    assert done.code == 0 and "OpenVINO was not run on it" in done.err
    assert "consumer" not in done.json
    assert Manifest.parse((tmp_path / "out" / "koffkit.json").read_bytes(), tmp_path).consumer is None
    assert "Measured" not in (tmp_path / "out" / "README.md").read_text()
