"""Safetensors files in one read: their tensors are views of one buffer, and a header that was checked once is
compared and not parsed again.

The memories of one run have the same headers, and one that is paged in again has the ones it had. What was
read stays as it is, whatever becomes of the file: it is no part of it, as a mapped file would be.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ..errors import IntegrityError
from ..storage.tensors_file import header_text, parse_header

if TYPE_CHECKING:
    from typing_extensions import Self

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
REMEDY = "copy the bundle again"
KNOWN = 64
"""Headers that are remembered."""
Place = tuple[torch.device, torch.dtype]


class Identity(NamedTuple):
    """What a file has as long as nobody writes to it or puts another one in its place."""

    path: Path
    size: int
    changed: int
    inode: int

    @classmethod
    def of(cls, path: Path, stat: os.stat_result) -> Self:
        """Of a file with this status."""
        return cls(path, stat.st_size, stat.st_mtime_ns, stat.st_ino)


@dataclass(frozen=True, eq=False)
class Layout:
    """Where tensors lie in files that have one and the same header.

    Args:
        like: the tensors by name, of no content (meta).
        starts: of each, in bytes from the first.
        begin, end: of all of them, in bytes within the file.
        dtypes: that they have.
    """

    like: Mapping[str, Tensor]
    starts: Sequence[int]
    begin: int
    end: int
    dtypes: frozenset[torch.dtype]

    @classmethod
    def of(cls, path: Path, text: bytes, size: int) -> Layout:
        """Of a file with this header.

        Raises:
            IntegrityError: the header does not describe the file.
        """
        found, _ = parse_header(path, text, size, remedy=REMEDY)
        begin = 8 + len(text)
        like = {
            name: torch.empty(info.shape, dtype=DTYPES[info.dtype], device="meta")
            for name, info in found.items()
        }
        starts = [info.start - begin for info in found.values()]
        return cls(like, starts, begin, size, frozenset(tensor.dtype for tensor in like.values()))

    @property
    def alike(self) -> bool:
        """Whether all tensors are floating point of one type, so that they can be converted as one."""
        return len(self.dtypes) == 1 and all(dtype.is_floating_point for dtype in self.dtypes)

    def views(self, data: Tensor, place: Place | None) -> dict[str, Tensor]:
        """The tensors in a buffer of bytes.

        Args:
            data: their bytes [end - begin].
            place: where they shall be and of which type, if they are `alike`; None, and otherwise: as is.
        """
        flat = {
            dtype: data[: len(data) // dtype.itemsize * dtype.itemsize].view(dtype) for dtype in self.dtypes
        }
        if place is not None and self.alike:
            flat = {dtype: whole.to(*place) for dtype, whole in flat.items()}
        return {
            name: torch.as_strided(flat[dtype], shape, stride, start)
            if dtype is not None
            else data[start : start + like.nbytes].clone().view(like.dtype).reshape(like.shape)
            for (name, like), (dtype, shape, stride, start) in zip(
                self.like.items(), self._strided, strict=True
            )
        }

    @cached_property
    def _strided(self) -> list[tuple[torch.dtype | None, torch.Size, tuple[int, ...], int]]:
        """Of each tensor its type, shape, strides and first element; without a type, and with the first byte,
        where it does not lie at a multiple of its elements' size."""
        return [
            (None, like.shape, (), start)
            if start % like.itemsize
            else (like.dtype, like.shape, like.stride(), start // like.itemsize)
            for like, start in zip(self.like.values(), self.starts, strict=True)
        ]


class Headers:
    """Headers that were checked, and what they say; several threads may use them."""

    def __init__(self) -> None:
        self._known: dict[tuple[bytes, int], Layout] = {}

    def layout(self, file: FileIO, path: Path) -> Layout:
        """Of a file that was just opened.

        Raises:
            IntegrityError: its header does not describe it.
        """
        key = header_text(file, path, remedy=REMEDY)
        found = self._known.get(key)
        if found is None:
            found = Layout.of(path, *key)
            if len(self._known) >= KNOWN:
                self._known.clear()
            self._known[key] = found
        return found


class FlatFile:
    """An open file whose header was checked. A context manager, which closes it.

    Args:
        path: the file.
        headers: that are known.

    Raises:
        IntegrityError: it cannot be read, or its header does not describe it.
    """

    def __init__(self, path: Path, headers: Headers) -> None:
        self.path = path
        try:
            self._file = FileIO(path)
            try:
                self.layout = headers.layout(self._file, path)
            except BaseException:
                self._file.close()
                raise
        except OSError as reason:
            raise self._unreadable(reason) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    @property
    def identity(self) -> Identity:
        """Of the open file."""
        return Identity.of(self.path, os.fstat(self._file.fileno()))

    def read(self, into: Tensor | None = None) -> Tensor:
        """The bytes of the tensors, for `Layout.views`.

        Args:
            into: where they shall be [end - begin]; None: in a new tensor.

        Raises:
            IntegrityError: the file is shorter than it was, or cannot be read.
        """
        size, done = self.layout.end - self.layout.begin, 0
        data = torch.empty(size, dtype=torch.uint8) if into is None else into
        rest = data.numpy().data
        try:
            self._file.seek(self.layout.begin)
            while done < size:
                count = self._file.readinto(rest[done:])
                if not count:
                    raise IntegrityError(f"{self.path}: ended after {done} of {size} bytes; {REMEDY}.")
                done += count
        except OSError as reason:
            raise self._unreadable(reason) from None
        return data

    def _unreadable(self, reason: OSError) -> IntegrityError:
        return IntegrityError(f"{self.path}: cannot be read ({reason.strerror or reason}); {REMEDY}.")
