"""All that the backbone lacks, kept beside it, so that `koffkit restore` can make the base again."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...artefact.digests import backbone_digest
from ...artefact.manifest import KeptRemoved
from ...artefact.names import REMOVED, REMOVED_WEIGHTS
from ...checkpoint.files import CONFIG
from ...checkpoint.reader import CheckpointReader, fsync_file
from ...masks.removed import WHOLE, Gone
from ...masks.sliced_reader import SlicedReader
from ...masks.slicing import Slices, backbone_slices, zero_rows
from ...storage.tensors_file import write_header
from .publishing import Draft

PIECE = 1 << 24


def write_removed(draft: Draft) -> KeptRemoved:
    """Write every part of the base's tensors that the written backbone lacks, and the base's config.

    Raises:
        IntegrityError: the base is damaged.
    """
    folder, base = draft.folder / REMOVED, draft.run.spec.folder
    folder.mkdir()
    draft.progress.message("keeping what was removed")
    with draft.timed("removed"):
        parts, copies = _parts(draft)
        path = folder / REMOVED_WEIGHTS
        with open(path, "wb") as file:
            file.write(write_header({name: (dtype, shape) for name, dtype, shape, _ in parts}))
            for _, _, _, pieces in parts:
                for piece in pieces:
                    file.write(piece)
            fsync_file(file)
    shutil.copyfile(base / CONFIG, folder / CONFIG)
    return KeptRemoved(
        path=REMOVED,
        bytes=path.stat().st_size,
        tensors=backbone_digest(base),
        copies=copies,
    )


Part = tuple[str, str, tuple[int, ...], Iterator[Any]]
"""Name, type, shape and bytes."""


def _parts(draft: Draft) -> tuple[list[Part], dict[str, str]]:
    """What to write, in the base's order; and tensors that are copies of others, as a tied head may be."""
    spec, masks = draft.run.spec, draft.run.masks
    slices, zeroed = backbone_slices(spec, masks), zero_rows(spec, masks)
    base = CheckpointReader(spec.folder)
    sliced, written = SlicedReader(spec.folder, slices, zeroed), CheckpointReader(draft.backbone)
    parts: list[Part] = []
    copies: dict[str, str] = {}
    for name, info in base.tensors.items():
        if name not in spec.weight_shapes:  # a tied head that is stored a second time (`ModelSpec.reader`)
            copies[name] = f"{spec.arch.embeddings}.weight"
        elif name not in written.tensors or not _same(name, sliced, written):
            parts.append((name + WHOLE, info.dtype, info.shape, base.read_bytes(name, PIECE)))
        elif name in slices or name in zeroed:
            gone = Gone.of(info.shape, slices.get(name, {}), zeroed.get(name))
            for ending, cuts in gone.cuts().items():
                parts.append(_part(spec.folder, name, ending, {name: cuts}))
    return parts, copies


def _part(folder: Path, name: str, ending: str, cuts: Slices) -> Part:
    reader = SlicedReader(folder, cuts, {})
    info = reader.tensors[name]
    return name + ending, info.dtype, info.shape, reader.read_pieces(name, PIECE)


def _same(name: str, sliced: SlicedReader, written: CheckpointReader) -> bool:
    """Whether the backbone's tensor is the base's with rows and columns gone, and nothing else."""
    one, other = sliced.tensors[name], written.tensors[name]
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    hashers = [hashlib.sha256(), hashlib.sha256()]
    for piece in sliced.read_pieces(name, PIECE):
        hashers[0].update(piece)
    for part in written.read_bytes(name, PIECE):
        hashers[1].update(part)
    return hashers[0].digest() == hashers[1].digest()
