"""Restored neurons that several memories of an export hold alike."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..artefact.bundle import Bundle
from ..storage.tensors_file import read_tensors

if TYPE_CHECKING:
    from torch import Tensor

PLACES = "neurons"


def shared_neurons(bundles: Sequence[Bundle]) -> dict[str, int] | None:
    """How many restored neurons all memories have, and how many different ones.

    Two are the same if place and every stored byte agree: neurons that were tuned, or fitted to a domain, are
    each memory's own.

    Returns:
        `count`, `distinct`, `bytes` (of their weights) and `distinct_bytes` (if each were kept once); None:
        no memory has any.

    Raises:
        IntegrityError: a file is damaged.
    """
    sizes: list[int] = []
    distinct: dict[bytes, int] = {}
    for bundle in bundles:
        for digest, size in _neurons(bundle.neurons_file):
            sizes.append(size)
            distinct[digest] = size
    if not sizes:
        return None
    return {
        "count": len(sizes),
        "distinct": len(distinct),
        "bytes": sum(sizes),
        "distinct_bytes": sum(distinct.values()),
    }


def _neurons(path: Path | None) -> Iterator[tuple[bytes, int]]:
    """Digest and bytes of every neuron of a file."""
    if path is None:
        return
    import torch

    layers: dict[str, dict[str, Tensor]] = {}
    for name, value in read_tensors(path, remedy="copy the bundle again").items():
        _, layer, own = name.split(".", 2)
        layers.setdefault(layer, {})[own] = value
    for layer, tensors in layers.items():
        places = tensors.pop(PLACES).tolist()
        rows = torch.cat([_rows(name, value) for name, value in sorted(tensors.items())], dim=1)
        for place, row in zip(places, rows.numpy(), strict=True):
            yield hashlib.sha256(f"{layer} {place} ".encode() + row.tobytes()).digest(), row.nbytes


def _rows(name: str, value: Tensor) -> Tensor:
    """The bytes of a tensor, [n, bytes]: columns of down, rows of all others."""
    import torch

    rows = value.T if name.startswith("down_proj") else value
    return rows.reshape(len(rows), -1).contiguous().view(torch.uint8)
