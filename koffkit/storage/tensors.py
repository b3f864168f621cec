"""Reproducible safetensors files: the same tensors give the same bytes."""

from __future__ import annotations

import json
import struct


def with_sorted_metadata(data: bytes) -> bytes:
    """A serialised safetensors file with its metadata sorted by name; the library writes it in an order that
    changes between processes."""
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    if "__metadata__" in header:
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data[8 + length :]
