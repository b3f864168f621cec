"""A base checkpoint read as if it were sliced and one memory were part of its weights (ours).

LoRA is folded into the matrices that it adapts, W + B A alpha / rank, at their sliced widths. Restored
neurons come after the layer's own: rows of gate and up, columns of down. A KV memory is no part of any
weight.

Legend: R LoRA rank, D hidden, n restored neurons of one layer.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..arch import Architecture
from ..arch.spec import Indices
from ..artefact.bundle import MemoryFolder
from ..artefact.names import ADAPTER_CONFIG
from ..checkpoint.reader import as_tensor, torch_dtype
from ..masks.memory_cuts import MemoryCuts
from ..masks.repair import Repair
from ..masks.sliced_reader import SlicedReader
from ..masks.slicing import ADAPTER_PREFIX, Slices
from ..storage.read_json import read_json
from ..storage.tensors_file import TensorInfo
from .bundles import load_adapter
from .lora_memory import scaling_of
from .neuron_memory import NeuronMemory

_RAW = {2: torch.int16, 4: torch.int32, 8: torch.int64}
REMEDY = "resume the run to write it again"


@dataclass(frozen=True)
class Factor:
    """LoRA of one matrix, in float64.

    Args:
        a: [R, in].
        b: [out, R].
        scaling: alpha / R.
    """

    a: Tensor
    b: Tensor
    scaling: float

    def rows(self, first: int, count: int) -> Tensor:
        """`count` rows of B A alpha / R from `first` on, [count, in]."""
        return self.scaling * (self.b[first : first + count] @ self.a)


@dataclass(frozen=True)
class MergedMemory:
    """What of a memory goes into weights.

    Args:
        factors: LoRA by the name of the weight.
        rows: restored rows of weights [n, D] and biases [n], by name.
        columns: restored columns of weights [D, n], by name.
    """

    factors: Mapping[str, Factor]
    rows: Mapping[str, Tensor]
    columns: Mapping[str, Tensor]

    @classmethod
    def of(
        cls, memory: MemoryFolder, neurons: NeuronMemory, arch: Architecture, cuts: MemoryCuts
    ) -> MergedMemory:
        """Read a memory of a run and cut it to the widths of the backbone.

        Args:
            memory: its folder.
            neurons: its restored neurons by layer, which no mask cuts.
            arch: of the base.
            cuts: of the backbone.

        Raises:
            IntegrityError: a file is missing or damaged.
        """
        rows, columns = {}, {}
        for layer, own in neurons.items():
            for name, value in own.tensors().items():
                place = f"{arch.layer(layer)}mlp.{name}"
                if name == "down_proj.weight":
                    columns[place] = value
                elif name != "neurons":
                    rows[place] = value
        return cls(lora_factors(memory, cuts), rows, columns)

    def with_biases(self, tensors: Container[str]) -> MergedMemory:
        """The same memory with zeros for biases that a repair has added and the restored neurons lack."""
        rows = dict(self.rows)
        for name, value in self.rows.items():
            bias = f"{name.removesuffix('.weight')}.bias"
            if bias in tensors:
                rows.setdefault(bias, value.new_zeros(len(value)))
        return replace(self, rows=rows)


def lora_factors(memory: MemoryFolder, cuts: MemoryCuts | None = None) -> dict[str, Factor]:
    """The LoRA half of a memory by the name of the weight that it adapts; empty: it has none.

    Args:
        memory: its folder.
        cuts: of the backbone; None: the memory has the backbone's widths already.

    Raises:
        IntegrityError: a file is missing or damaged.
    """
    if memory.adapter_file is None:
        return {}
    config = read_json(memory.path / ADAPTER_CONFIG, remedy=REMEDY)
    tensors = {
        name: (value if cuts is None else torch.from_numpy(cuts.adapter(name, value.numpy()))).double()
        for name, value in load_adapter(memory).items()
    }
    factors = {}
    for name in (name for name in tensors if name.endswith(".lora_A.weight")):
        module = name.removeprefix(ADAPTER_PREFIX).removesuffix(".lora_A.weight")
        other = name.replace(".lora_A.", ".lora_B.")
        scaling = scaling_of(config, module, memory.path / ADAPTER_CONFIG)
        factors[f"{module}.weight"] = Factor(tensors[name], tensors[other], scaling)
    return factors


class MergedReader(SlicedReader):
    """A reader of the sliced checkpoint with a memory in its weights.

    Args:
        folder: the unsliced checkpoint.
        slices, zero_rows, repair: as of `SlicedReader`.
        memory: what is merged.

    Raises:
        IntegrityError: files and index do not agree, or a file is damaged.
    """

    def __init__(
        self,
        folder: Path,
        slices: Slices,
        zero_rows: Mapping[str, Indices],
        memory: MergedMemory,
        repair: Repair | None = None,
    ) -> None:
        super().__init__(folder, slices, zero_rows, repair)
        self._memory = memory.with_biases(self.tensors)
        self.tensors = {name: self._grown(name, info) for name, info in self.tensors.items()}

    def _grown(self, name: str, info: TensorInfo) -> TensorInfo:
        rows, columns = self._memory.rows.get(name), self._memory.columns.get(name)
        if rows is not None:
            return replace(info, shape=(info.shape[0] + len(rows), *info.shape[1:]))
        if columns is not None:
            return replace(info, shape=(info.shape[0], info.shape[1] + columns.shape[1]))
        return info

    @cached_property
    def changed(self) -> frozenset[str]:
        """The tensors that the memory changes."""
        return frozenset((*self._memory.factors, *self._memory.rows, *self._memory.columns))

    def exact_rows(self, name: str, at_once: int) -> Iterator[tuple[int, Tensor]]:
        """`(first row, rows)` in float64, before they are rounded to the type that they are stored in."""
        memory, dtype, done = self._memory, self.tensors[name].dtype, 0
        for first, raw in super().read_rows(name, at_once):
            rows = as_tensor(raw, dtype).double()
            if name in memory.factors:
                rows += memory.factors[name].rows(first, len(rows))
            if name in memory.columns:
                more = memory.columns[name][first : first + len(rows)].double()
                rows = torch.cat([rows, more], dim=1)
            yield first, rows
            done += len(rows)
        if name in memory.rows:
            yield done, memory.rows[name].double()

    def read_rows(self, name: str, at_once: int) -> Iterator[tuple[int, NDArray[Any]]]:
        """`(first row, rows)`, as they are stored."""
        if name not in self.changed:
            yield from super().read_rows(name, at_once)
            return
        info = self.tensors[name]
        for first, rows in self.exact_rows(name, at_once):
            stored = rows.to(torch_dtype(info.dtype)).contiguous().view(_RAW[info.itemsize])
            yield first, stored.numpy().view(f"u{info.itemsize}")

    def read_pieces(self, name: str, at_once: int) -> Iterator[Any]:
        """The tensor in order, as buffers that are not overwritten."""
        if name not in self.changed:
            yield from super().read_pieces(name, at_once)
            return
        for _, rows in self.read_rows(name, at_once):
            yield rows.reshape(-1).view(np.uint8).data

    def tensor_rows(self, name: str, at_once: int) -> Iterator[tuple[int, Tensor]]:
        """`(first row, rows)`: what the memory changes is exact, not rounded to the type that it is stored
        in."""
        yield from (self.exact_rows if name in self.changed else super().tensor_rows)(name, at_once)


__all__ = ["Factor", "MergedMemory", "MergedReader", "lora_factors"]
