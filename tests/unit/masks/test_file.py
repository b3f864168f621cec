from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from koffkit.checkpoint.spec import ModelSpec
from koffkit.errors import IntegrityError
from koffkit.masks.file import FORMAT, load_masks, save_masks
from koffkit.masks.masks import kept_counts

from ...common import SIZES

CONFIG = SIZES | {"model_type": "llama"}
SPEC = ModelSpec(config=CONFIG)


def test_masks_come_back_as_written(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    masks = {
        (i, name): generator.random(units) < 0.5
        for i in range(3)
        for name, units in (("mlp_neuron", 48), ("kv_group", 2))
    }
    save_masks(masks, tmp_path / "masks.safetensors")
    loaded = load_masks(tmp_path / "masks.safetensors", SPEC)
    assert loaded.keys() == masks.keys() and all(np.array_equal(loaded[key], masks[key]) for key in masks)
    assert kept_counts(loaded)["mlp_neuron"] == [int(masks[i, "mlp_neuron"].sum()) for i in range(3)]


@pytest.mark.parametrize(
    ("tensors", "metadata", "message"),
    [
        ({"layers.0.mlp_neuron": np.ones(48, np.uint8)}, {"format": "other"}, "format 'other'"),
        (
            {"layers.0.mlp_neuron": np.ones(47, np.uint8)},
            {"format": FORMAT},
            r"shape \(47,\), this base has 48 units",
        ),
        (
            {"layers.3.mlp_neuron": np.ones(48, np.uint8)},
            {"format": FORMAT},
            "unexpected tensor 'layers.3.mlp_neuron'",
        ),
        ({"layers.0.heads": np.ones(48, np.uint8)}, {"format": FORMAT}, "unexpected tensor 'layers.0.heads'"),
    ],
)
def test_masks_of_another_model_are_refused(
    tmp_path: Path, tensors: dict, metadata: dict, message: str
) -> None:
    save_file(tensors, tmp_path / "m.safetensors", metadata=metadata)
    with pytest.raises(IntegrityError, match=message):
        load_masks(tmp_path / "m.safetensors", SPEC)


def test_missing_and_damaged_masks(tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match="masks are missing"):
        load_masks(tmp_path / "m.safetensors", SPEC)
    (tmp_path / "m.safetensors").write_bytes(b"\x00" * 40)
    with pytest.raises(IntegrityError, match="not a safetensors file"):
        load_masks(tmp_path / "m.safetensors", SPEC)
