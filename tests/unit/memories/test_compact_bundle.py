from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from koffkit.artefact.export import open_export
from koffkit.memories.compact_bundle import Options, write_compact
from koffkit.model.bundles import load_neurons

from ...conftest import Shipped


def products(folder: Path) -> dict[str, torch.Tensor]:
    """alpha / rank * B @ A of every module, as peft computes it."""
    config: dict[str, Any] = json.loads((folder / "adapter_config.json").read_text())
    tensors = load_file(folder / "adapter_model.safetensors")
    found = {}
    for name in tensors:
        if ".lora_A." in name:
            module = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            rank = (config.get("rank_pattern") or {}).get(module, config["r"])
            assert tensors[name].shape[0] == rank
            alpha = (config.get("alpha_pattern") or {}).get(module, config["lora_alpha"])
            found[module] = alpha / rank * tensors[name.replace("lora_A", "lora_B")] @ tensors[name]
    return found


@pytest.mark.parametrize(
    "options",
    [Options(dtype="float32"), Options(dtype="float32", rank=2), Options(dtype="float32", energy=0.8)],
)
def test_modules_keep_their_scaling_and_the_energy_asked_for(
    options: Options, shipped: Shipped, tmp_path: Path
) -> None:
    export = open_export(shipped.export)
    bundle = export.bundles()[0]
    small = write_compact(bundle, export, options, tmp_path)
    before, after = products(bundle.path), products(tmp_path)
    assert before.keys() == after.keys() and small.info.compacted.rank_before == 4
    for module, whole in before.items():
        lost = float((whole - after[module]).square().sum() / whole.square().sum())
        if options.rank is not None:
            singular = torch.linalg.svdvals(whole).square()
            assert lost == pytest.approx(float(singular[2:].sum() / singular.sum()), abs=1e-4)
        else:
            assert lost <= 1 - options.energy + 1e-5
    if options.energy < 1:
        assert small.info.compacted.ranks[0] < 4
    kept = sum(
        value.numel()
        for name in ("adapter_model", "kv_memory")
        for value in load_file(tmp_path / f"{name}.safetensors").values()
    )
    assert small.info.parameters == kept and small.info.golden is not None


@pytest.mark.parametrize(
    ("dtype", "file", "stored"),
    [
        ("int6", "neurons_packed.safetensors", torch.int8),
        ("int8", "neurons_packed.safetensors", torch.int8),
        ("float16", "neurons.safetensors", torch.float16),
        ("float32", "neurons.safetensors", torch.float32),
    ],
)
def test_restored_neurons_are_compacted_with_the_rest(
    dtype: str, file: str, stored: torch.dtype, restored: Shipped, tmp_path: Path
) -> None:
    export = open_export(restored.export)
    bundle = export.bundles()[0]
    small = write_compact(bundle, export, Options(dtype=dtype), tmp_path)
    assert small.neurons_file == tmp_path / file
    assert file in small.info.files
    assert small.info.parameters_by_half["neurons"] == 9 * 3 * 32
    assert {value.dtype for name, value in load_file(tmp_path / file).items() if "proj.weight" in name} >= {
        stored
    }
    before, after = (load_neurons(part, 3, 32) for part in (bundle, small))
    for layer, own in before.items():
        assert own.index.equal(after[layer].index)
        for name, value in own.tensors().items():
            limit = value.abs().max() / (100 if dtype.startswith("int") else 1000)
            assert (value - after[layer].tensors()[name].float()).abs().max() <= limit, name
    assert f"`{file}`" in (tmp_path / "README.md").read_text()


def test_neurons_in_a_small_type_do_not_grow(restored: Shipped, tmp_path: Path) -> None:
    export = open_export(restored.export)
    bundle = export.bundles()[0]
    (tmp_path / "half").mkdir()
    (tmp_path / "again").mkdir()
    half = write_compact(bundle, export, Options(dtype="float16"), tmp_path / "half")
    again = write_compact(half, export, Options(dtype="float32"), tmp_path / "again")
    names = [part.path / "neurons.safetensors" for part in (half, again)]
    assert names[0].read_bytes() == names[1].read_bytes()
