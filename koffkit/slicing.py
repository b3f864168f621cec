"""Which rows and columns stay: from masks and declarations to index arrays. Pure arithmetic, no disk, no devices.

Everything that is physically cut (base weights, biases, LoRA factors, KV memories) is cut by what is computed here.

Legend: K KV heads, P memory tokens, H head dim, R LoRA rank.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .arch import Architecture, Cut, Shape
from .errors import UsageError
from .structures import Masks, kept_counts

Indices = NDArray[np.int64]
Slices = Mapping[str, Mapping[int, Indices]]
"""Tensor name -> dimension -> indices that stay. A tensor that is not listed stays whole."""

ADAPTER_PREFIX = "base_model.model."


def channels(cut: Cut, shape: Shape, keep: NDArray[np.bool_]) -> Indices:
    """The channels of a tensor dimension that belong to the kept units, ascending."""
    block = cut.channels_per_unit(shape)
    units: Indices = np.flatnonzero(keep).astype(np.int64)
    return (units[:, None] * block + np.arange(block, dtype=np.int64)).reshape(-1)


def backbone_slices(arch: Architecture, shape: Shape, masks: Masks) -> dict[str, dict[int, Indices]]:
    """Cuts of the base's weights and biases. A bias is listed whether or not this model has it."""
    found: dict[str, dict[int, Indices]] = {}
    for (layer, name), keep in masks.items():
        for cut in arch.structures[name].cuts:
            indices, module = channels(cut, shape, keep), arch.layer(layer) + cut.module
            found.setdefault(f"{module}.weight", {})[0 if cut.side == "out" else 1] = indices
            if cut.side == "out":
                found.setdefault(f"{module}.bias", {})[0] = indices
    return found


def adapter_slices(arch: Architecture, shape: Shape, masks: Masks) -> dict[str, dict[int, Indices]]:
    """Cuts of a PEFT adapter: rows of B [out, R] where outputs go, columns of A [R, in] where inputs go."""
    found: dict[str, dict[int, Indices]] = {}
    for (layer, name), keep in masks.items():
        for cut in arch.structures[name].cuts:
            module = ADAPTER_PREFIX + arch.layer(layer) + cut.module
            factor, dimension = ("lora_B", 0) if cut.side == "out" else ("lora_A", 1)
            found[f"{module}.{factor}.weight"] = {dimension: channels(cut, shape, keep)}
    return found


def kv_memory_slices(arch: Architecture, masks: Masks) -> dict[str, dict[int, Indices]]:
    """Cuts of a KV memory: heads of `layers.{i}.key` and `layers.{i}.value`, each [K, P, H]."""
    found: dict[str, dict[int, Indices]] = {}
    for (layer, name), keep in masks.items():
        if arch.structures[name].cuts_kv_memory:
            for half in ("key", "value"):
                found[f"layers.{layer}.{half}"] = {0: np.flatnonzero(keep).astype(np.int64)}
    return found


def take(array: NDArray[Any], cuts: Mapping[int, Indices] | None) -> NDArray[Any]:
    """The kept part of an array, contiguous."""
    for dimension, indices in (cuts or {}).items():
        array = np.take(array, indices, axis=dimension)
    return np.ascontiguousarray(array)


def uniform_counts(masks: Masks) -> dict[str, int]:
    """Units kept in every layer, by structure.

    Raises:
        UsageError: the layers differ, so that no stock class can hold the result.
    """
    found = {}
    for name, counts in kept_counts(masks).items():
        if len(set(counts)) != 1:
            raise UsageError(
                f"masks: layers keep different counts of {name} ({min(counts)} to {max(counts)}); format hf needs layout uniform."
            )
        found[name] = counts[0]
    return found
