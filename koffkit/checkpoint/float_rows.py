"""Reading floating-point tensors in pieces, whoever reads the file."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from math import prod
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, dtype

AT_ONCE = 1 << 24
"""Bytes of a file that are read at once, where nothing else is said."""


class FloatRows:
    """What a reader can do that gives `tensor_rows`.

    Attributes:
        tensors: what there is, by name, with `shape`.
    """

    tensors: Mapping[str, Any]
    _floats: Tensor | None = None

    @abstractmethod
    def tensor_rows(self, name: str, at_once: int) -> Iterator[tuple[int, Tensor]]:
        """`(first row, rows)` in a floating type of the reader's choice, at least as exact as the file's.

        A piece is valid until the next one is read, of this tensor or another.

        Args:
            name: the tensor's.
            at_once: bytes in the file of a piece, about.
        """

    def read(self, name: str, out: Tensor | None = None) -> Tensor:
        """A whole tensor in float32, or read into `out` in its dtype; reuse `out` to read many weights.

        Args:
            name: the tensor's.
            out: of the tensor's shape, to read into.
        """
        import torch

        out = torch.empty(tuple(self.tensors[name].shape)) if out is None else out
        for first, rows in self.tensor_rows(name, AT_ONCE):
            out[first : first + len(rows)] = rows
        return out

    def read_float_rows(
        self, name: str, at_once: int, dtype: dtype | None = None
    ) -> Iterator[tuple[int, Tensor]]:
        """`tensor_rows` in a given type.

        All pieces lie in one buffer: allocating large ones again and again fragments the heap to several
        times what is in use.

        Args:
            name: the tensor's.
            at_once: bytes in the file.
            dtype: of the result; None: float32.
        """
        import torch

        dtype = dtype or torch.float32
        for first, rows in self.tensor_rows(name, at_once):
            if rows.dtype == dtype:
                yield first, rows
                continue
            floats = self._floats
            if floats is None or floats.dtype != dtype or len(floats) < rows.numel():
                floats = self._floats = torch.empty(rows.numel(), dtype=dtype)
            yield first, floats[: rows.numel()].view(rows.shape).copy_(rows)

    def release(self) -> None:
        """Free the buffer until it is needed again."""
        self._floats = None


def rows_in(at_once: int, shape: tuple[int, ...], itemsize: int) -> int:
    """How many rows of a tensor of this shape are about `at_once` bytes; at least one.

    Args:
        at_once: bytes.
        shape: of the tensor.
        itemsize: bytes of a number.
    """
    return max(1, at_once // max(1, prod(shape[1:]) * itemsize))
