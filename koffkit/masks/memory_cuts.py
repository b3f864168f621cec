"""Cutting a memory that was learned at the widths of the unsliced base."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from ..checkpoint.spec import ModelSpec
from .masks import Masks
from .slicing import adapter_slices, kv_memory_keeps, take, take_kv, zero_rows


class MemoryCuts:
    """The cuts of the memories of one backbone, tensor by tensor."""

    def __init__(self, spec: ModelSpec, masks: Masks) -> None:
        self._adapter, self._zero_rows = adapter_slices(spec, masks), zero_rows(spec, masks)
        self._kv = kv_memory_keeps(spec, masks)

    def adapter(self, name: str, value: NDArray[Any]) -> NDArray[Any]:
        if name in self._zero_rows:
            value = value.copy()
            value[self._zero_rows[name]] = 0
        return take(value, self._adapter.get(name))

    def kv(self, name: str, value: NDArray[Any]) -> NDArray[Any]:
        return take_kv(value, self._kv.get(name))
