"""Masks: which units of which layer stay.

A mask is a boolean array over the units of one structure in one layer; True = keep.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from ..arch import Architecture

Masks = Mapping[tuple[int, str], NDArray[np.bool_]]


def kept_counts(masks: Masks) -> dict[str, list[int]]:
    """Units kept per layer, by structure, in layer order."""
    counts: dict[str, list[int]] = {}
    for (_, structure), keep in sorted(masks.items()):
        counts.setdefault(structure, []).append(int(keep.sum()))
    return counts


def masked_counts(arch: Architecture, masks: Masks) -> dict[str, int]:
    """Units that are zero but still present, summed over layers, by masked-only structure."""
    counts: dict[str, int] = {}
    for (_, name), keep in masks.items():
        if arch.structures[name].masked_cuts:
            counts[name] = counts.get(name, 0) + int((~keep).sum())
    return counts
