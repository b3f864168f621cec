"""Format `gguf`: what is refused, before anything is written or published."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from koffkit.exporters import export
from safetensors.torch import load_file, save_file

from koffkit.errors import IntegrityError, UsageError

from ...common import make_checkpoint, recipe_dict
from ...conftest import Shipped
from .test_gguf import learned

gguf = pytest.importorskip("gguf")


def test_restored_neurons_beside_the_weights_are_refused(restored: Shipped, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"memory.neurons: .* with --merge NAME \(there is north, south\)"):
        export(restored.run, tmp_path / "out", "gguf")
    assert not list(tmp_path.iterdir())


def test_kv_memories_in_some_layers_are_refused(llama: Path, tmp_path: Path) -> None:
    memory = recipe_dict(llama, tmp_path / "data")["memory"] | {"layers": {"upper": 2}}
    run = learned(llama, tmp_path, memory=memory)
    with pytest.raises(UsageError, match=r"in 2 of 3 layers; .* memory.layers: all, .* -o kv=false"):
        export(run, tmp_path / "out", "gguf")
    assert not (tmp_path / "out").exists()
    export(run, tmp_path / "out", "gguf", {"kv": False})
    assert len(list((tmp_path / "out" / "memories").iterdir())) == 2


@pytest.mark.parametrize(
    ("family", "mask", "words"),
    [
        ("qwen3", {"layout": "ragged"}, "qwen3: layers of different widths"),
        ("llama", {"structures": ["v_channel"], "global_sparsity": 0.03}, "whole heads only"),
        ("gemma3_text", {}, "the backbone is a gemma3_text; koffkit writes llama"),
    ],
)
def test_what_llama_cpp_does_not_compute_is_refused(
    family: str, mask: dict[str, Any], words: str, tmp_path: Path
) -> None:
    sizes = {"head_dim": 8} if family != "llama" else {}
    base = make_checkpoint(tmp_path / "base", family, **sizes)
    mask = recipe_dict(base, tmp_path / "data")["mask"] | {"multiple_of": 1} | mask
    run = learned(base, tmp_path, mask=mask)
    with pytest.raises(UsageError, match=words):
        export(run, tmp_path / "out", "gguf")
    assert not (tmp_path / "out").exists()


def test_numbers_that_f16_cannot_hold_are_refused(tmp_path: Path) -> None:
    base = make_checkpoint(tmp_path / "base")
    tensors = load_file(base / "model.safetensors")
    tensors["lm_head.weight"][3, 3] = 1e5
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    run = learned(base, tmp_path)
    with pytest.raises(UsageError, match=r"-o type: lm_head.weight .* choose bf16 or f32"):
        export(run, tmp_path / "out", "gguf", {"type": "f16"})
    assert not (tmp_path / "out").exists()


def test_a_file_that_reads_back_differently_is_refused(
    shipped: Shipped, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = gguf.GGUFWriter.write_tensor_data

    def damaged(writer: Any, tensor: np.ndarray[Any, Any], *more: Any) -> None:
        if tensor.ndim == 2:
            tensor = tensor[::-1].copy()
        real(writer, tensor, *more)

    monkeypatch.setattr(gguf.GGUFWriter, "write_tensor_data", damaged)
    with pytest.raises(IntegrityError, match=r"is not what was written; nothing was published"):
        export(shipped.run, tmp_path / "out", "gguf")
    assert not list(tmp_path.iterdir())
