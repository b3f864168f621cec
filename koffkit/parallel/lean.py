"""Keeping a process small: what it no longer needs stays with it unless it is given back."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

MAPS = Path("/proc/self/maps")
FROM_BYTES = 1 << 18
"""What is at least so large goes back to the system when it is freed. glibc's own limit rises to 32 MB with
what is freed, and below it the room of a tensor rarely fits the next one of the same size, for torch asks for
aligned memory: holes of half of what is in use, and layers that were fetched."""
OF_USERS = ("MALLOC_MMAP_THRESHOLD_", "glibc.malloc.mmap_threshold")
_MMAP_THRESHOLD = -3  # M_MMAP_THRESHOLD of malloc.h


def free_at_once() -> None:
    """Give large blocks back to the system as soon as they are freed, unless the user has said from which
    size on. Nothing happens with an allocator other than glibc's."""
    said = (*os.environ, os.environ.get("GLIBC_TUNABLES", ""))
    if any(name in text for name in OF_USERS for text in said):
        return
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is not None:
        set_option(_MMAP_THRESHOLD, FROM_BYTES)


def give_back() -> None:
    """Give freed memory back to the system, which glibc keeps where it lies below something that is still in
    use: after a repair in several domains that was half of what a process had."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)


def let_go(tensors: Iterable[Tensor]) -> None:
    """Let go of the pages of weights that are mapped from a file: they are read again if they are needed.
    What does not come from a file stays as it is.

    Args:
        tensors: equal to what is in their files; a change of theirs would be lost.
    """
    mapped = _mapped_files()
    for tensor in tensors:
        # only pages that hold nothing else
        first = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
        last = (tensor.data_ptr() + tensor.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
        if first < last and any(low <= first and last <= high for low, high in mapped):
            address, size = ctypes.c_void_p(first), ctypes.c_size_t(last - first)
            ctypes.CDLL(None).madvise(address, size, mmap.MADV_DONTNEED)


def _mapped_files() -> list[tuple[int, int]]:
    """Addresses of the files that this process maps; none where the system does not say."""
    found = []
    for line in MAPS.read_text().splitlines() if MAPS.is_file() else []:
        addresses, _, _, _, inode, *_ = line.split(maxsplit=5)
        if inode != "0":
            low, _, high = addresses.partition("-")
            found.append((int(low, 16), int(high, 16)))
    return found
