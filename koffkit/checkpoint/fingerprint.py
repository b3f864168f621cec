"""Recognising a base checkpoint."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path

from .files import checkpoint_files, read_config

SAMPLES, SAMPLE_BYTES = 64, 1024  # of each weight file


def fingerprint(folder: Path) -> str:
    """A sha256 over the config and, of every weight file, the header, the size and samples of its bytes. It
    is cheap, and differs for a model of the same shape that was trained further."""
    hasher = hashlib.sha256(json.dumps(read_config(folder), sort_keys=True).encode())
    for path in checkpoint_files(folder):
        size = path.stat().st_size
        with open(path, "rb") as file:
            prefix = file.read(8)
            length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
            hasher.update(path.name.encode() + file.read(min(length, 100_000_000)))
            for place in range(SAMPLES):
                file.seek(size * place // SAMPLES)
                hasher.update(file.read(SAMPLE_BYTES))
        hasher.update(str(size).encode())
    return hasher.hexdigest()
