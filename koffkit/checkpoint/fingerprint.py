"""Knowing a base checkpoint again: by a digest of all of it; earlier runs and exports did by samples."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from typing import Any, Literal

from ..progress import Progress, Silent
from ..storage.tensors_file import TensorInfo
from .files import checkpoint_files, read_config, tokenizer_files
from .reader import CheckpointReader

DigestKind = Literal["sampled", "full"]
CHUNK = 1 << 22
SAMPLES, SAMPLE_BYTES = 64, 1024  # of each weight file


def fingerprint(folder: Path) -> str:
    """A sha256 over the config and, of every weight file, the header, the size and samples of its bytes. It
    is cheap, and differs for a model of the same shape that was trained further."""
    hasher = hashlib.sha256(json.dumps(read_config(folder), sort_keys=True).encode())
    for path in checkpoint_files(folder):
        _update(hasher, path)
    return hasher.hexdigest()


def sampled_digest(path: Path) -> str:
    """sha256 over the name and the size of a weight file, its header and samples of its bytes."""
    hasher = hashlib.sha256()
    _update(hasher, path)
    return hasher.hexdigest()


def _update(hasher: Any, path: Path) -> None:
    size = path.stat().st_size
    with open(path, "rb") as file:
        prefix = file.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        hasher.update(path.name.encode() + file.read(min(length, 100_000_000)))
        for place in range(SAMPLES):
            file.seek(size * place // SAMPLES)
            hasher.update(file.read(SAMPLE_BYTES))
    hasher.update(str(size).encode())


class FullDigest:
    """`full_digest` for who reads the checkpoint anyway: begin every tensor in the order of their names, and
    hand over its bytes.

    Args:
        folder: a checkpoint.

    Raises:
        DataError: there is no valid config.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._hasher = hashlib.sha256(json.dumps(read_config(folder), sort_keys=True).encode())

    def begin(self, name: str, info: TensorInfo) -> None:
        """The bytes that follow are those of this tensor."""
        self._hasher.update(f"\n{name} {info.dtype} {list(info.shape)}\n".encode())

    def update(self, data: Any) -> None:
        """The next bytes of a tensor."""
        self._hasher.update(data)

    def end(self) -> str:
        """The digest, once all tensors were read; reads what else belongs to the checkpoint."""
        for path in tokenizer_files(self._folder):
            content = path.read_bytes()
            self._hasher.update(f"\n{path.name} {len(content)}\n".encode() + content)
        return str(self._hasher.hexdigest())


def full_digest(folder: Path, progress: Progress | None = None) -> str:
    """sha256 over the config, every byte of every tensor, the tokenizer and the settings of generation.

    How the tensors are divided into files does not count.

    Args:
        folder: a checkpoint.
        progress: told of every tensor; by default nobody is.

    Raises:
        DataError: there is no valid config.
        IntegrityError: a file is missing or damaged.
    """
    digest = FullDigest(folder)
    reader, progress = CheckpointReader(folder), progress or Silent()
    progress.start("reading base", len(reader.tensors), 0)
    for done, (name, info) in enumerate(sorted(reader.tensors.items()), 1):
        digest.begin(name, info)
        for part in reader.read_bytes(name, CHUNK):
            digest.update(part)
        progress.advance("reading base", done, {})
    return digest.end()


def digest_of(folder: Path, kind: DigestKind, progress: Progress | None = None) -> str:
    """What a run or an export knows its base by.

    Args:
        folder: the base.
        kind: `full`: every byte is read; `sampled`: as runs and exports of earlier versions did.
        progress: told how far the reading is; by default nobody is.
    """
    return full_digest(folder, progress) if kind == "full" else fingerprint(folder)
