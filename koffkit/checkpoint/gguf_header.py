"""The header of a GGUF file, checked in full before anything else trusts the file.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. GGUF has no checksums, so what can be
checked is the structure: every length lies in the file, and so do all bytes of every tensor.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from ..errors import DataError, IntegrityError, UsageError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
ALIGNMENT = 32
"""Of the tensor data, unless the file names another one."""
# Codes of the format for types of metadata, as `struct` reads them.
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """A tensor as its file lists it.

    Args:
        shape: slowest dimension first, as in torch.
        kind: ggml's code for how the numbers are stored.
        offset: where it begins, in bytes from the start of the tensor data.
    """

    shape: tuple[int, ...]
    kind: int
    offset: int


@dataclass(frozen=True, kw_only=True)
class GgufHeader:
    """What a GGUF file says of itself.

    Args:
        metadata: numbers and strings by key; arrays, which hold the vocabulary, are left out.
        tensors: by ggml's name.
        data_start: where the tensor data begins in the file.
        size: bytes of the file.
    """

    metadata: Mapping[str, Any]
    tensors: Mapping[str, StoredTensor]
    data_start: int
    size: int

    @property
    def num_params(self) -> int:
        """Numbers in all tensors."""
        return sum(prod(tensor.shape) for tensor in self.tensors.values())

    def require_whole(self, path: Path, blocks: Mapping[int, tuple[int, int]]) -> None:
        """Check that the file holds every tensor to its end.

        Args:
            blocks: of each way to store numbers, how many a block has and the bytes of a block.

        Raises:
            IntegrityError: the file is truncated.
            UsageError: a tensor is stored in a way that is not in `blocks`.
        """
        for name, tensor in self.tensors.items():
            if tensor.kind not in blocks:
                raise UsageError(
                    f"{path}: {name} is stored as ggml type {tensor.kind}, which the gguf package does not "
                    "know; update it (pip install -U gguf), or use another quantisation of the model."
                )
            numbers, size = blocks[tensor.kind]
            end = self.data_start + tensor.offset + -(-prod(tensor.shape) // numbers) * size
            if end > self.size:
                raise IntegrityError(
                    f"{path}: truncated: {name} ends at byte {end:,}, the file has {self.size:,}; download "
                    "it again."
                )


def read_gguf_header(path: Path) -> GgufHeader:
    """Read the metadata and the list of tensors.

    Raises:
        DataError: this is no GGUF file.
        UsageError: it has a version that cannot be read.
        IntegrityError: it is truncated or damaged.
    """
    with open(path, "rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise DataError(f"{path}: no GGUF file (it does not begin with GGUF); download it again.")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            try:
                return _parse(_Cursor(content), path)
            except (struct.error, ValueError, OverflowError, RecursionError) as error:
                raise IntegrityError(
                    f"{path}: the header is truncated or damaged ({error}); download it again."
                ) from None


def _parse(cursor: _Cursor, path: Path) -> GgufHeader:
    version, num_tensors, num_keys = cursor.unpack("IQQ")
    if version not in VERSIONS:
        raise UsageError(
            f"{path}: GGUF version {version}; versions {VERSIONS[0]} and {VERSIONS[1]} (little-endian) can "
            "be read, convert the model again with a current llama.cpp."
        )
    metadata: dict[str, Any] = {}
    for _ in range(num_keys):
        key = cursor.string()
        value = cursor.value(cursor.number("I"))
        if value is not None:
            metadata[key] = value
    tensors: dict[str, StoredTensor] = {}
    for _ in range(num_tensors):
        name, num_dimensions = cursor.string(), cursor.number("I")
        if num_dimensions > 8:
            raise ValueError(f"{name!r} has {num_dimensions} dimensions")
        shape = cursor.unpack("Q" * num_dimensions)
        kind, offset = cursor.unpack("IQ")
        tensors[name] = StoredTensor(shape=shape[::-1], kind=kind, offset=offset)
    alignment = metadata.get("general.alignment", ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 1:
        raise ValueError(f"general.alignment is {alignment!r}")
    start = -(-cursor.place // alignment) * alignment
    return GgufHeader(metadata=metadata, tensors=tensors, data_start=start, size=len(cursor.content))


class _Cursor:
    """Reads one value after the other; beyond the end of the file, `struct.error` or ValueError."""

    def __init__(self, content: mmap.mmap) -> None:
        self.content, self.place = content, len(MAGIC)

    def unpack(self, form: str) -> tuple[Any, ...]:
        values = struct.unpack_from(f"<{form}", self.content, self.place)
        self.place += struct.calcsize(f"<{form}")
        return values

    def number(self, form: str) -> Any:
        return self.unpack(form)[0]

    def skip(self, count: int) -> int:
        """Go on by `count` bytes; returns where it was."""
        start = self.place
        if count > len(self.content) - start:
            raise ValueError(f"a length of {count:,} bytes at byte {start:,} leads out of the file")
        self.place += count
        return start

    def string(self) -> str:
        start = self.skip(self.number("Q"))
        return self.content[start : self.place].decode("utf-8")

    def value(self, kind: int) -> Any:
        """A number or string; an array is only passed over, as None."""
        if kind in _NUMBERS:
            return self.number(_NUMBERS[kind])
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY:
            raise ValueError(f"metadata of unknown type {kind}")
        inner, count = self.unpack("IQ")
        if inner in _NUMBERS:
            self.skip(count * struct.calcsize(f"<{_NUMBERS[inner]}"))
            return None
        for _ in range(count):
            if inner == _STRING:
                self.skip(self.number("Q"))
            else:
                self.value(inner)
        return None
