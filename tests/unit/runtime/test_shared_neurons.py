from __future__ import annotations

import shutil
from pathlib import Path

from safetensors.torch import load_file

from koffkit.artefact.export import open_export
from koffkit.runtime.inspect import describe
from koffkit.runtime.overview import overview
from koffkit.runtime.shared_neurons import shared_neurons

from ...conftest import Shipped

NEURON = 3 * 32 * 4
"""Bytes of one."""


def places(export: Path, domain: str) -> set[tuple[str, int]]:
    tensors = load_file(export / "memories" / domain / "neurons.safetensors")
    return {(name, place) for name, own in tensors.items() if "neurons" in name for place in own.tolist()}


def test_neurons_that_memories_share_count_once_as_well(restored: Shipped) -> None:
    north, south = (places(restored.export, domain) for domain in ("north", "south"))
    distinct = len(north | south)
    assert 9 <= distinct < 18
    found = describe(restored.export)["neurons"]
    assert found == {
        "count": 18,
        "distinct": distinct,
        "bytes": 18 * NEURON,
        "distinct_bytes": distinct * NEURON,
    }
    assert f"18 neurons, {distinct} different" in "\n".join(overview(describe(restored.export)))


def test_a_neuron_with_other_weights_is_another_one(restored: Shipped, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    export = open_export(shutil.copytree(restored.export, tmp_path / "out"))
    before = shared_neurons(export.bundles())
    path = export.path / "memories" / "north" / "neurons.safetensors"
    tensors = load_file(path)
    for name, value in tensors.items():
        if "down_proj" in name:
            value += 1
    save_file(tensors, path)
    after = shared_neurons(export.bundles())
    assert before is not None and before["distinct"] < 18
    assert after is not None and after["distinct"] == 18


def test_an_export_without_neurons_says_nothing_of_them(shipped: Shipped) -> None:
    assert describe(shipped.export)["neurons"] is None
    assert "neurons," not in "\n".join(overview(describe(shipped.export)))
