"""Slicing a checkpoint file by file: a piece is read, cut and written before the next one is read."""

from __future__ import annotations

import hashlib
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from ...artefact.digests import combine_tensor_digests, tensor_hasher
from ...artefact.parts import FileEntry
from ...checkpoint.files import INDEX
from ...checkpoint.reader import fsync_file
from ...masks.sliced_reader import SlicedReader
from ...progress import Progress
from ...storage.files import write_json
from ...storage.tensors_file import write_header

PIECE = 1 << 24


@dataclass(frozen=True)
class Sliced:
    """The written backbone: number of parameters (and how many of them the base does not have), digest, and
    an entry for each file."""

    parameters: int
    added: int
    digest: str
    files: dict[str, FileEntry]


def slice_checkpoint(reader: SlicedReader, skip: set[str], output: Path, progress: Progress) -> Sliced:
    """Write the tensors of every file of `reader` into `output`, in the order and sharding of the source.

    Args:
        skip: tensors that are not written (a tied head).
    """
    hashes: dict[str, Any] = {}
    files: dict[str, tuple[Any, int]] = {}
    weight_map: dict[str, str] = {}
    parameters = added = total = 0
    count = len(reader.tensors)
    progress.start("slice", count, 0)
    with _Hashing() as hashing:
        for path, tensors in reader.by_file.items():
            written = {name: reader.tensors[name] for name in tensors if name not in skip}
            file_hash = hashlib.sha256()
            with open(output / path.name, "wb") as file:
                header = write_header({name: (info.dtype, info.shape) for name, info in written.items()})
                file.write(header)
                hashing.update(header, file_hash)
                for name, info in written.items():
                    hashes[name] = tensor_hasher(info.dtype, info.shape)
                    for data in reader.read_pieces(name, PIECE):
                        file.write(data)
                        hashing.update(data, file_hash, hashes[name])
                    weight_map[name] = path.name
                    parameters += prod(info.shape)
                    added += prod(info.shape) if name in reader.added else 0
                    total += prod(info.shape) * info.itemsize
                    progress.advance("slice", len(hashes), {})
                fsync_file(file)
                files[path.name] = file_hash, file.tell()
    if len(reader.by_file) > 1:
        index = {
            "metadata": {"total_size": total, "total_parameters": parameters},
            "weight_map": dict(sorted(weight_map.items())),
        }
        write_json(output / INDEX, index)
    digests = {name: hasher.hexdigest() for name, hasher in hashes.items()}
    entries = {
        name: FileEntry(sha256=hasher.hexdigest(), size=size) for name, (hasher, size) in files.items()
    }
    return Sliced(parameters, added, combine_tensor_digests(digests), entries)


class _Hashing:
    """Digests of a file and of its tensors, each on a thread: in sequence they would take longer than
    reading, cutting and writing together."""

    PENDING = 8

    def __enter__(self) -> _Hashing:
        self._threads = [ThreadPoolExecutor(1), ThreadPoolExecutor(1)]
        self._pending: deque[Future[None]] = deque()
        return self

    def update(self, data: Any, *hashers: Any) -> None:
        for thread, hasher in zip(self._threads, hashers, strict=False):
            self._pending.append(thread.submit(hasher.update, data))
        while len(self._pending) > self.PENDING:
            self._pending.popleft().result()

    def __exit__(self, *_: object) -> None:
        for thread in self._threads:
            thread.shutdown()
