from __future__ import annotations

import numpy as np
import torch

from koffkit.masks.convert import as_gates, as_masks, masks_of_counts
from koffkit.masks.slicing import widths_of

from .test_slicing import SPEC


def test_gates_become_masks_and_gates_again() -> None:
    gates = {"b": torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]]), "a": torch.tensor([[1.0], [0.0]])}
    masks = as_masks(gates)
    assert {place: keep.tolist() for place, keep in masks.items()} == {
        (0, "b"): [True, False, True],
        (1, "b"): [False, True, True],
        (0, "a"): [True],
        (1, "a"): [False],
    }
    again = as_gates(masks)
    assert list(again) == ["a", "b"]
    assert all(torch.equal(again[name], gates[name]) for name in gates)


def test_counts_become_masks_that_keep_equally_many_of_every_head() -> None:
    masks = masks_of_counts(SPEC, {"mlp_neuron": 4, "v_channel": 2})
    assert masks[0, "mlp_neuron"].tolist() == [True] * 4 + [False] * 2
    np.testing.assert_array_equal(masks[0, "v_channel"].reshape(2, 2), [[True, False]] * 2)
    widths = widths_of(SPEC, masks)[0]
    assert (widths.intermediate, widths.value_channels, widths.kv_heads) == (4, 1, 2)
