"""Digests of exports and bundles.

A backbone is identified by the digest of its tensors (names, types, shapes, bytes), not of its files: a copy
with other shards is still the same backbone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..checkpoint.files import checkpoint_files
from ..progress import Progress, Silent, StepCounter
from .names import CARD, MANIFEST
from .parts import FileEntry

CHUNK = 1 << 22


def combine_tensor_digests(digests: Mapping[str, str]) -> str:
    """The backbone's digest from `{tensor name: tensor_digest}`."""
    lines = "".join(f"{name} {digests[name]}\n" for name in sorted(digests))
    return hashlib.sha256(lines.encode()).hexdigest()


def tensor_hasher(dtype: str, shape: tuple[int, ...]) -> Any:
    """A sha256 that starts with the tensor's type and shape; update it with the bytes."""
    return hashlib.sha256(f"{dtype} {list(shape)}\n".encode())


def backbone_digest(folder: Path, progress: Progress | None = None) -> str:
    """The digest of a backbone folder, computed from every byte of its tensors.

    Args:
        folder: the backbone.
        progress: told of every tensor; by default nobody is.

    Raises:
        IntegrityError: a file is missing or damaged.
    """
    from ..checkpoint.reader import CheckpointReader

    reader = CheckpointReader(folder)
    step = StepCounter(progress or Silent(), "reading backbone", len(reader.tensors))
    digests = {}
    for name, info in reader.tensors.items():
        hasher = tensor_hasher(info.dtype, info.shape)
        for part in reader.read_bytes(name, CHUNK):
            hasher.update(part)
        digests[name] = hasher.hexdigest()
        step()
    return combine_tensor_digests(digests)


def list_files(root: Path) -> Iterator[Path]:
    """Every file that the manifest covers: all but itself, and cards, which people may edit."""
    for path in sorted(root.rglob("*")):
        if path.is_file() and path.relative_to(root).as_posix() != MANIFEST and path.name != CARD:
            yield path


def file_entry(path: Path) -> FileEntry:
    """Digest and size of a file."""
    with open(path, "rb") as file:
        digest = (
            hashlib.file_digest(file, "sha256") if hasattr(hashlib, "file_digest") else _file_digest(file)
        )
    return FileEntry(sha256=digest.hexdigest(), size=path.stat().st_size)


def _file_digest(file: Any) -> Any:  # Python 3.10
    hasher = hashlib.sha256()
    while part := file.read(CHUNK):
        hasher.update(part)
    return hasher


def weight_bytes(folder: Path) -> int:
    """Bytes of a checkpoint's weight files."""
    return sum(path.stat().st_size for path in checkpoint_files(folder))
