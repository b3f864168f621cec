"""The weights of a model, each read from disk when its module runs, so that one matrix at a time is in
memory."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from math import prod

import torch
from torch import Tensor

from ..checkpoint.reader import CheckpointReader
from ..masks.slicing import ADAPTER_PREFIX
from ..model.loaded import LoadedWeights


class Weights(Mapping[str, Tensor]):
    """Parameter name in the (perhaps peft-wrapped) model -> tensor, read on access.

    A matrix is needed during the forward pass of its own module only, so all of them share one buffer of the
    largest one's size: allocating each anew, or ever larger ones, would fragment the heap to several times
    what is in use.

    Args:
        reader: the checkpoint.
        adapters: LoRA by name of the adapter.
        dtype: of what is read.
        repair: tensors that stand in for the checkpoint's.
        apart: matrices that are never asked for: those of the vocabulary.
    """

    def __init__(
        self,
        reader: CheckpointReader | LoadedWeights,
        adapters: Mapping[str, Mapping[str, Tensor]],
        dtype: torch.dtype,
        repair: Mapping[str, Tensor],
        apart: Container[str] = (),
    ) -> None:
        sizes = {name: tuple(info.shape) for name, info in reader.tensors.items() if name not in apart}
        self._largest = max((prod(shape) for shape in sizes.values() if len(shape) > 1), default=0)
        self.reader, self.adapters, self.dtype, self.repair = reader, adapters, dtype, repair
        self.release()

    def release(self) -> None:
        """Free the buffer; a comparison of two models needs only one at a time."""
        self._buffer = torch.empty(0, dtype=self.dtype)

    def __getitem__(self, name: str) -> Tensor:
        for slot, tensors in self.adapters.items():
            if name.endswith(f".{slot}.weight"):
                return tensors[name.removesuffix(f".{slot}.weight") + ".weight"].to(self.dtype)
        name = name.removeprefix(ADAPTER_PREFIX).replace(".base_layer.", ".")
        if name in self.repair:
            return self.repair[name].to(self.dtype)
        shape = self.reader.tensors[name].shape
        if len(shape) == 1:  # a bias is in use together with its matrix
            return self.reader.read(name, torch.empty(shape, dtype=self.dtype))
        if self._buffer.numel() < prod(shape):
            self._buffer = torch.empty(max(prod(shape), self._largest), dtype=self.dtype)
        return self.reader.read(name, self._buffer[: prod(shape)].view(shape))

    def __iter__(self) -> Iterator[str]:
        return iter(self.reader.tensors)

    def __len__(self) -> int:
        return len(self.reader.tensors)
