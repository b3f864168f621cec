"""Safetensors files: headers, checked in full before anything in them is trusted, and small files, read whole
or refused."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from numpy.typing import NDArray

from ..errors import IntegrityError, KoffkitError
from .read_json import parse_json_object

if TYPE_CHECKING:
    from torch import Tensor

MAX_HEADER = 100_000_000
"""In bytes; the limit of the format itself."""
MAX_TENSORS = 100_000
"""In one file; the largest models have half as many in all their files."""
ITEMSIZE = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
}
"""Bytes per number, by the format's names of dtypes."""
_NOT_NUMPY = ("BF16", "F8_E4M3", "F8_E5M2")


@dataclass(frozen=True)
class TensorInfo:
    """The place of a tensor: `start` and `size` in bytes within `path`."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    size: int

    @property
    def itemsize(self) -> int:
        """Bytes of one number."""
        return ITEMSIZE[self.dtype]

    @property
    def row_bytes(self) -> int:
        """Bytes of one index of the first dimension."""
        return self.itemsize * prod(self.shape[1:])


def read_header(
    path: Path, *, error: type[KoffkitError] = IntegrityError, remedy: str = "download it again"
) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """Read the header of a file: its tensors in file order, and its metadata.

    Args:
        error: the class to raise.
        remedy: what the user can do, as the end of a sentence.

    Raises:
        error: the file is missing or truncated, or its header does not describe it: a duplicate name, an
            unknown dtype, an offset that is negative, overlaps another or leaves a gap.
    """
    try:
        with open(path, "rb") as file:
            text, size = header_text(file, path, error=error, remedy=remedy)
    except OSError as reason:
        raise error(f"{path}: cannot be read ({reason.strerror or reason}); {remedy}.") from None
    return parse_header(path, text, size, error=error, remedy=remedy)


def header_text(
    file: IO[bytes],
    path: Path,
    *,
    error: type[KoffkitError] = IntegrityError,
    remedy: str = "download it again",
) -> tuple[bytes, int]:
    """The header of a file that was just opened, not looked into, and the size of the file.

    Raises:
        error: the file is too short for it.
    """
    size, prefix = os.fstat(file.fileno()).st_size, file.read(8)
    length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else -1
    if not 2 <= length <= min(MAX_HEADER, size - 8):
        raise error(
            f"{path}: truncated or not a safetensors file ({size} bytes, header length {length}); {remedy}."
        )
    return file.read(length), size


def parse_header(
    path: Path,
    text: bytes,
    size: int,
    *,
    error: type[KoffkitError] = IntegrityError,
    remedy: str = "download it again",
) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """`read_header` of what `header_text` returned: a header, and the size of its file."""
    length = len(text)
    _require_few(text.count(b'"data_offsets"'), path, error, remedy)  # before it is parsed
    header = parse_json_object(text, f"{path}: damaged safetensors header", error=error, remedy=remedy)
    _require_few(len(header), path, error, remedy)
    try:
        metadata = _metadata(header.pop("__metadata__", {}))
        tensors = {name: _info(path, 8 + length, entry) for name, entry in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as reason:
        raise error(
            f"{path}: damaged safetensors header ({type(reason).__name__}: {reason}); {remedy}."
        ) from None
    return _in_file_order(path, tensors, 8 + length, size, error, remedy), metadata


def _require_few(count: int, path: Path, error: type[KoffkitError], remedy: str) -> None:
    if count > MAX_TENSORS:
        raise error(f"{path}: {count:,} tensors, the limit is {MAX_TENSORS:,} a file; {remedy}.")


def _metadata(value: Any) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise ValueError("__metadata__ is not an object of texts")
    return value


def _whole(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{value!r} is not a size")
    return value


def _info(path: Path, data: int, entry: dict[str, Any]) -> TensorInfo:
    if entry["dtype"] not in ITEMSIZE:
        raise ValueError(f"unknown dtype {entry['dtype']!r}")
    begin, end = (_whole(offset) for offset in entry["data_offsets"])
    shape = tuple(_whole(size) for size in entry["shape"])
    return TensorInfo(path, entry["dtype"], shape, data + begin, end - begin)


def _in_file_order(
    path: Path,
    tensors: dict[str, TensorInfo],
    data: int,
    size: int,
    error: type[KoffkitError],
    remedy: str,
) -> dict[str, TensorInfo]:
    """The tensors in file order, which must fill the file without gap or overlap."""
    ordered = dict(sorted(tensors.items(), key=lambda item: (item[1].start, item[1].size)))
    position = data
    for name, info in ordered.items():
        if info.start != position or info.size != info.itemsize * prod(info.shape):
            raise error(f"{path}: {name} does not lie where its header says; the file is damaged, {remedy}.")
        position += info.size
    if position != size:
        raise error(
            f"{path}: {size} bytes, but its header describes {position}; the file is truncated or damaged, "
            f"{remedy}."
        )
    return ordered


def write_header(tensors: dict[str, tuple[str, tuple[int, ...]]]) -> bytes:
    """A safetensors header for `{name: (dtype, shape)}` in that order, padded to eight bytes."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, (dtype, shape) in tensors.items():
        size = ITEMSIZE[dtype] * prod(shape)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, position + size]}
        position += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def read_arrays(
    path: Path, *, error: type[KoffkitError] = IntegrityError, remedy: str = "copy the file again"
) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    """All tensors of a small file as NumPy arrays, and its metadata.

    Args:
        path: the file.
        error: the class to raise.
        remedy: what the user can do, as the end of a sentence.

    Raises:
        error: the file is missing or damaged, or holds a dtype that NumPy does not have.
    """
    from safetensors.numpy import load

    tensors, metadata = read_header(path, error=error, remedy=remedy)
    require_numpy(path, tensors, error=error, remedy=remedy)
    arrays: dict[str, NDArray[Any]] = load(path.read_bytes())
    return arrays, metadata


def require_numpy(
    path: Path,
    tensors: Mapping[str, TensorInfo],
    *,
    error: type[KoffkitError] = IntegrityError,
    remedy: str = "copy the file again",
) -> None:
    """Refuse tensors of a type that NumPy does not have; arguments as of `read_arrays`.

    Raises:
        error: there is one.
    """
    unknown = next((name for name, info in tensors.items() if info.dtype in _NOT_NUMPY), None)
    if unknown is not None:
        dtype = tensors[unknown].dtype
        raise error(f"{path}: {unknown} has type {dtype}, which does not belong here; {remedy}.")


def read_tensors(
    path: Path, *, error: type[KoffkitError] = IntegrityError, remedy: str = "copy the file again"
) -> dict[str, Tensor]:
    """All tensors of a small file as torch tensors on the CPU; raises as `read_arrays` does."""
    from safetensors.torch import load_file

    read_header(path, error=error, remedy=remedy)
    tensors: dict[str, Tensor] = load_file(path)
    return tensors
