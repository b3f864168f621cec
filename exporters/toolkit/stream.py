"""Slicing a checkpoint file by file: a piece is read, cut and written before the next one is read."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable
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
from .shards import files_of, index_of_files

PIECE = 1 << 24


@dataclass(frozen=True)
class Sliced:
    """The written backbone: number of parameters (and how many of them the base does not have), digest, and
    an entry for each file."""

    parameters: int
    added: int
    digest: str
    files: dict[str, FileEntry]


def slice_checkpoint(
    reader: SlicedReader,
    skip: set[str],
    output: Path,
    progress: Progress,
    max_shard_size: str | None = None,
) -> Sliced:
    """Write the tensors of `reader` into `output`, in the order of the source.

    Args:
        reader: the checkpoint.
        skip: tensors that are not written (a tied head).
        output: the folder.
        progress: told of every tensor.
        max_shard_size: most bytes of a file, such as `5GB`; None: the files of the source.
    """
    hashes: dict[str, Any] = {}
    entries: dict[str, tuple[Any, int]] = {}
    files = files_of(reader, skip, max_shard_size)
    progress.start("slice", len(reader.tensors), 0)
    with _Hashing() as hashing:
        for file, names in files.items():
            entries[file] = _write_file(
                reader,
                names,
                output / file,
                hashing,
                hashes,
                lambda: progress.advance("slice", len(hashes), {}),
            )
    written = {name: reader.tensors[name] for name in hashes}
    counts = {name: prod(info.shape) for name, info in written.items()}
    parameters = sum(counts.values())
    if len(files) > 1:
        total = sum(counts[name] * info.itemsize for name, info in written.items())
        write_json(output / INDEX, index_of_files(files, total, parameters))
    return Sliced(
        parameters,
        sum(counts[name] for name in reader.added if name in counts),
        combine_tensor_digests({name: hasher.hexdigest() for name, hasher in hashes.items()}),
        {file: FileEntry(sha256=hasher.hexdigest(), size=size) for file, (hasher, size) in entries.items()},
    )


def _write_file(
    reader: SlicedReader,
    names: list[str],
    path: Path,
    hashing: _Hashing,
    hashes: dict[str, Any],
    done: Callable[[], None],
) -> tuple[Any, int]:
    """Write one file of weights, and hash it and its tensors meanwhile.

    Args:
        hashes: gets the hash of every tensor.
        done: called after every tensor.

    Returns:
        the file's hash and size.
    """
    whole = hashlib.sha256()
    infos = {name: reader.tensors[name] for name in names}
    with open(path, "wb") as file:
        header = write_header({name: (info.dtype, info.shape) for name, info in infos.items()})
        file.write(header)
        hashing.update(header, whole)
        for name, info in infos.items():
            hashes[name] = tensor_hasher(info.dtype, info.shape)
            for data in reader.read_pieces(name, PIECE):
                file.write(data)
                hashing.update(data, whole, hashes[name])
            done()
        fsync_file(file)
        return whole, file.tell()


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
