"""A memory as one file that GenAI loads as a LoRA adapter: both halves.

GenAI computes B (A x) and takes no alpha from a file, so alpha / rank is part of B here.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...artefact.bundle import MemoryFolder
from ...masks.slicing import ADAPTER_PREFIX
from ...model.merging import lora_factors
from ...storage.files import write_atomically
from .places import PRESENT, place

if TYPE_CHECKING:
    from ...model.bundles import KVTensors

Array = NDArray[np.float32]


def adapter_tensors(bundle: MemoryFolder, memory: KVTensors, tokens: int) -> dict[str, Array]:
    """A and B of every module and place, by their names in the file.

    Args:
        bundle: a memory for the backbone.
        memory: its KV half; empty: none is written.
        tokens: of the places for memory tokens.

    Raises:
        IntegrityError: a file of the bundle is damaged.
    """
    tensors: dict[str, Array] = {}
    for name, factor in lora_factors(bundle).items():
        a, b = factor.a.numpy(), factor.scaling * factor.b.numpy()
        tensors |= _pair(name.removesuffix(".weight"), a, b)
    present = np.zeros(tokens)
    for layer, kv in memory.items():
        for half, value in (("key", kv.key), ("value", kv.value)):
            own = value.float().numpy()
            present[: own.shape[1]] = 1
            padded = np.pad(own, ((0, 0), (0, tokens - own.shape[1]), (0, 0)))
            tensors |= _pair(place(layer, half), np.ones((1, 1)), padded.reshape(-1, 1))
    if memory:
        tensors |= _pair(PRESENT, np.ones((1, 1)), present[:, None])
    return tensors


def write_adapter(path: Path, tensors: Mapping[str, Array]) -> None:
    """Write the file."""
    from safetensors.numpy import save

    write_atomically(path, save(dict(tensors), metadata={"format": "pt"}))


def _pair(name: str, a: Any, b: Any) -> dict[str, Array]:
    halves = {"A": a, "B": b}
    return {
        f"{ADAPTER_PREFIX}{name}.lora_{half}.weight": np.ascontiguousarray(value, dtype=np.float32)
        for half, value in halves.items()
    }
