from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from koffkit.artefact.export import open_export
from koffkit.memories.compact_bundle import Options, write_compact

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
