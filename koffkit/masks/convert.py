"""Conversions between masks in memory (`Masks`), open or shut gates, and counts.

Legend: L layers, U units of a structure in one layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from ..checkpoint.spec import ModelSpec
from .masks import Masks

if TYPE_CHECKING:
    from torch import Tensor


def as_masks(gates: Mapping[str, Tensor]) -> Masks:
    """Convert gates of 0 and 1 to masks.

    Args:
        gates: [L, U] by structure.
    """
    return {
        (layer, name): row.bool().cpu().numpy()
        for name, table in gates.items()
        for layer, row in enumerate(table)
    }


def as_gates(masks: Masks) -> dict[str, Tensor]:
    """Convert masks of all layers to gates of 0 and 1, [L, U] by structure in alphabetical order, on the
    CPU."""
    import torch

    names = sorted({name for _, name in masks})
    layers = sorted({layer for layer, _ in masks})
    return {
        name: torch.stack([torch.from_numpy(masks[layer, name]).float() for layer in layers])
        for name in names
    }


def masks_of_counts(spec: ModelSpec, keep: Mapping[str, int]) -> Masks:
    """Masks of a single layer, number 0, that keeps the given numbers of units; which ones does not matter.

    Args:
        keep: units kept, by structure; equally many of every KV head.
    """
    masks = {}
    for name, count in keep.items():
        structure = spec.arch.structures[name]
        heads = structure.heads(spec.shape)
        per_head = structure.num_units(spec.shape) // heads
        masks[0, name] = np.tile(np.arange(per_head) < count // heads, heads)
    return masks
