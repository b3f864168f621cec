"""Reading safetensors checkpoints piece by piece, so that no tensor need be in memory as a whole.

The library's own reader maps files into memory, whose pages count towards the process; this one reads only
what is requested. Headers are checked in full before anything is trusted: a flipped length or a truncated
file is an error that names the file.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..errors import IntegrityError
from ..storage.read_json import read_json
from ..storage.tensors_file import TensorInfo, read_header
from .files import checkpoint_files, index_of
from .float_rows import AT_ONCE, FloatRows, rows_in

if TYPE_CHECKING:
    from torch import Tensor, dtype


Value = TypeVar("Value")
COMPUTED = ".rotary_emb.inv_freq"
"""The end of names that older checkpoints store and transformers computes from the config instead."""
VIEWS: dict[int, np.dtype[Any]] = {
    1: np.dtype(np.uint8),
    2: np.dtype(np.uint16),
    4: np.dtype(np.uint32),
    8: np.dtype(np.uint64),
}
"""Unsigned integers by their size in bytes: how numbers are read, whatever they mean."""
_TORCH = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
FLOATS = frozenset(_TORCH)
"""Types of weights, as safetensors names them."""


class CheckpointReader(FloatRows):
    """A checkpoint folder, one file or sharded.

    Args:
        folder: holds `model.safetensors` or an index with its shards.

    Raises:
        IntegrityError: files and index do not agree, or a file is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files = checkpoint_files(folder)
        self.by_file = {path: _stored(read_header(path)[0]) for path in self.files}
        self.tensors: dict[str, TensorInfo] = {}
        self._buffer: NDArray[np.uint8] = np.empty(0, dtype=np.uint8)
        for path, tensors in self.by_file.items():
            for name, info in tensors.items():
                if name in self.tensors:
                    raise IntegrityError(
                        f"{path}: {name} is also in {self.tensors[name].path.name}; download the checkpoint "
                        "again."
                    )
                self.tensors[name] = info
        self._check_index()

    def _check_index(self) -> None:
        path = index_of(self.folder)
        if path is None:
            return
        listed = _stored(read_json(path, remedy="download the checkpoint again")["weight_map"])
        for name, file in listed.items():
            if name not in self.tensors or self.tensors[name].path.name != file:
                raise IntegrityError(
                    f"{path}: says {name} is in {file}, which does not hold it; download the checkpoint "
                    "again."
                )
        extra = next((name for name in self.tensors if name not in listed), None)
        if extra is not None:
            raise IntegrityError(
                f"{path}: does not list {extra} of {self.tensors[extra].path.name}; download the checkpoint "
                "again."
            )

    def require(self, name: str, shape: tuple[int, ...]) -> TensorInfo:
        """The place of a tensor in its file, after a check of its shape.

        Args:
            name: the tensor's.
            shape: that it must have.

        Raises:
            IntegrityError: it is missing, or of another shape.
        """
        info = self.tensors.get(name)
        if info is None:
            raise IntegrityError(f"{self.folder}: the checkpoint lacks {name}; download it again.")
        if info.shape != shape:
            raise IntegrityError(
                f"{info.path}: {name} has shape {list(info.shape)}, config.json needs {list(shape)}."
            )
        return info

    def require_all(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """`require` every tensor: transformers would silently fill in missing ones at random."""
        for name, shape in shapes.items():
            self.require(name, shape)

    def same(self, name: str, other: str) -> bool:
        """Whether two tensors are of one type and shape and agree in every byte."""
        one, two = self.tensors[name], self.tensors[other]
        if (one.dtype, one.shape) != (two.dtype, two.shape):
            return False
        pairs = zip(self.read_bytes(name, AT_ONCE), self.read_bytes(other, AT_ONCE), strict=True)
        return all(first == second for first, second in pairs)

    def read_bytes(self, name: str, at_once: int) -> Iterator[bytes]:
        """A tensor's bytes in pieces of at most `at_once`.

        Args:
            name: the tensor's.
            at_once: bytes.
        """
        info = self.tensors[name]
        with open(info.path, "rb") as file:
            file.seek(info.start)
            left = info.size
            while left:
                part = file.read(min(left, at_once))
                _require_whole(len(part), min(left, at_once), info)
                left -= len(part)
                yield part

    def read_rows(self, name: str, at_once: int) -> Iterator[tuple[int, NDArray[Any]]]:
        """`(first row, rows)` as unsigned integers of the item size, pieces of at most about `at_once` bytes.

        A piece is valid until the next one is read, of this tensor or another.

        Args:
            name: the tensor's.
            at_once: bytes.
        """
        yield from self._rows(self.tensors[name], at_once)

    def _rows(self, info: TensorInfo, at_once: int) -> Iterator[tuple[int, NDArray[Any]]]:
        count = min(info.shape[0], rows_in(at_once, info.shape, info.itemsize))
        rows = self._room(count * info.row_bytes).view(VIEWS[info.itemsize]).reshape(count, *info.shape[1:])
        with open(info.path, "rb") as file:
            file.seek(info.start)
            for first in range(0, info.shape[0], count):
                piece = rows[: min(count, info.shape[0] - first)]
                fill(piece, file, info)
                yield first, piece

    def _room(self, size: int) -> NDArray[np.uint8]:
        """One buffer for all pieces: allocating large arrays again and again fragments the heap to several
        times what is in use."""
        if len(self._buffer) < size:
            self._buffer = np.empty(size, dtype=np.uint8)
        return self._buffer[:size]

    def gather_rows(self, name: str, indices: list[int], dtype: dtype | None = None) -> Tensor:
        """Chosen rows of a floating-point tensor, for example of an embedding; by default in float32.

        Args:
            name: of a matrix.
            indices: of rows, in any order.
            dtype: of the result; None: float32.
        """
        import torch

        info = self.tensors[name]
        with open(info.path, "rb") as file:
            rows: NDArray[Any] = np.empty((len(indices), *info.shape[1:]), dtype=VIEWS[info.itemsize])
            for place, index in enumerate(indices):
                file.seek(info.start + index * info.row_bytes)
                fill(rows[place], file, info)
        return as_tensor(rows, info.dtype).to(dtype or torch.float32)

    def tensor_rows(self, name: str, at_once: int) -> Iterator[tuple[int, Tensor]]:
        """`read_rows` as floating-point numbers of the file's type.

        Args:
            name: the tensor's.
            at_once: bytes.

        Raises:
            IntegrityError: the tensor is not floating point.
        """
        dtype = self.tensors[name].dtype
        for first, rows in self.read_rows(name, at_once):
            yield first, as_tensor(rows, dtype)


def _stored(tensors: Mapping[str, Value]) -> dict[str, Value]:
    return {name: value for name, value in tensors.items() if not name.endswith(COMPUTED)}


def fill(rows: NDArray[Any], file: IO[bytes], info: TensorInfo) -> None:
    """Read rows of a tensor from where its file is.

    Args:
        rows: contiguous, to read into.
        file: of the tensor.
        info: of the tensor, for the message.

    Raises:
        IntegrityError: the file ends before.
    """
    _require_whole(file.readinto(rows.reshape(-1).view(np.uint8)), rows.nbytes, info)  # type: ignore[attr-defined]


def _require_whole(got: int, wanted: int, info: TensorInfo) -> None:
    if got != wanted:
        raise IntegrityError(f"{info.path}: ended early; the file is truncated, download it again.")


def as_tensor(rows: NDArray[Any], dtype: str) -> Tensor:
    """Raw rows, as `read_rows` gives them, as a tensor that shares their memory.

    Raises:
        IntegrityError: the tensor is not floating point.
    """
    import torch

    if dtype not in _TORCH:
        raise IntegrityError(
            f"a weight has type {dtype}, koffkit needs one of {', '.join(_TORCH)}; use an unquantised "
            "checkpoint."
        )
    return torch.from_numpy(rows.view(np.int16 if rows.itemsize == 2 else f"i{rows.itemsize}")).view(
        getattr(torch, _TORCH[dtype])
    )


def torch_dtype(name: str) -> dtype:
    """The dtype of a floating-point tensor by its name in safetensors files."""
    import torch

    value: dtype = getattr(torch, _TORCH[name])
    return value


def fsync_file(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())
