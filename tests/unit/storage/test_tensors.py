from __future__ import annotations

import numpy as np
from safetensors.numpy import load, save

from koffkit.storage.tensors import with_sorted_metadata


def test_the_same_tensors_are_the_same_bytes() -> None:
    tensors = {"weight": np.arange(5, dtype=np.float16), "bias": np.ones(1, dtype=np.float32)}
    names = {"format": "a", "router": "ä", "zeta": "c", "alpha": "d"}
    saves = {with_sorted_metadata(save(tensors, metadata=names)) for _ in range(20)}
    assert len(saves) == 1
    again = load(saves.pop())
    assert {name: value.tolist() for name, value in again.items()} == {
        name: value.tolist() for name, value in tensors.items()
    }
