"""The same tensors, the same bytes: safetensors files that do not change from one save to the next."""

from __future__ import annotations

import json
import struct


def with_sorted_metadata(data: bytes) -> bytes:
    """A serialised safetensors file with the metadata in the order of its names; the library writes it in an
    order that changes between processes."""
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    if "__metadata__" in header:
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data[8 + length :]
