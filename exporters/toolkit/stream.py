"""Slicing a checkpoint: a piece is read, cut and written before the next one is read."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO, Any

from ...artefact.digests import combine_tensor_digests, tensor_hasher
from ...artefact.parts import FileEntry
from ...checkpoint.files import INDEX
from ...checkpoint.fingerprint import FullDigest
from ...checkpoint.reader import CheckpointReader, fsync_file
from ...masks.sliced_reader import SlicedReader
from ...progress import Progress
from ...storage.files import write_json
from ...storage.tensors_file import write_header
from .shards import files_of, index_of_files

PIECE = 1 << 22


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
    digest: FullDigest | None = None,
) -> Sliced:
    """Write the tensors of `reader` into `output`, each file in the order of the source.

    Args:
        reader: the checkpoint.
        skip: tensors that are not written (a tied head).
        output: the folder.
        progress: told of every tensor.
        max_shard_size: most bytes of a file, such as `5GB`; None: the files of the source.
        digest: of the unsliced checkpoint, computed while it is read, for which `can_hash` must hold.
    """
    files = files_of(reader, skip, max_shard_size)
    places = {name: file for file, names in files.items() for name in names}
    hashes: dict[str, Any] = {}
    progress.start("slice", len(reader.tensors), 0)
    with _Hashing(digest) as hashing:
        drafts = {file: _File(reader, names, output / file, hashing) for file, names in files.items()}
        for name in _in_order(reader, places, hashing):
            if name in places:
                hashes[name] = drafts[places[name]].write(name)
                progress.advance("slice", len(hashes), {})
        entries = {file: draft.close() for file, draft in drafts.items()}
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


def can_hash(reader: SlicedReader, skip: set[str], max_shard_size: str | None) -> bool:
    """Whether the tensors of every file come in the order of their names, which is that of the digest of a
    checkpoint; arguments as of `slice_checkpoint`."""
    return all(names == sorted(names) for names in files_of(reader, skip, max_shard_size).values())


def _in_order(reader: SlicedReader, places: Mapping[str, str], hashing: _Hashing) -> Iterator[str]:
    """The tensors in the order in which they are read; with a digest of the base, all of its own.

    What is not read for being written is read here, for the digest alone.
    """
    digest = hashing.digest
    if digest is None:
        yield from places
        return
    base = CheckpointReader(reader.folder)
    for name in sorted({*base.tensors, *places}):
        info = base.tensors.get(name)
        if info is not None:
            hashing.wait()
            digest.begin(name, info)
            if name not in places or reader.replaces(name):
                for part in base.read_bytes(name, PIECE):
                    digest.update(part)
            else:
                reader.heard = hashing.hear
        yield name
        reader.heard = None
    hashing.wait()


class _File:
    """One file of weights, opened when its first tensor is written."""

    def __init__(self, reader: SlicedReader, names: list[str], path: Path, hashing: _Hashing) -> None:
        self._reader, self._path, self._hashing = reader, path, hashing
        self._infos = {name: reader.tensors[name] for name in names}
        self._whole = hashlib.sha256()
        self._file: IO[bytes] | None = None

    def _opened(self) -> IO[bytes]:
        if self._file is None:
            self._file = open(self._path, "wb")  # noqa: SIM115  # closed when all files are written
            header = write_header({name: (info.dtype, info.shape) for name, info in self._infos.items()})
            self._file.write(header)
            self._hashing.update(header, self._whole)
        return self._file

    def write(self, name: str) -> Any:
        """Write a tensor; returns its hash, which is complete later."""
        file, info = self._opened(), self._infos[name]
        hasher = tensor_hasher(info.dtype, info.shape)
        for data in self._reader.read_pieces(name, PIECE):
            file.write(data)
            self._hashing.update(data, self._whole, hasher)
        return hasher

    def close(self) -> tuple[Any, int]:
        """Sync; returns the hash of the file, which is complete later, and its size."""
        with self._opened() as file:
            fsync_file(file)
            return self._whole, file.tell()


class _Hashing:
    """Digests of the base, of a file and of its tensors, each on a thread: in sequence they would take longer
    than reading, cutting and writing together.

    Args:
        digest: of the base.
    """

    PENDING = 8

    def __init__(self, digest: FullDigest | None) -> None:
        self.digest = digest

    def __enter__(self) -> _Hashing:
        self._threads = [ThreadPoolExecutor(1) for _ in range(3)]
        self._pending: deque[Future[None]] = deque()
        self._base: Future[None] | None = None
        return self

    def update(self, data: Any, *hashers: Any) -> None:
        for thread, hasher in zip(self._threads, hashers, strict=False):
            self._pending.append(thread.submit(hasher.update, data))
        while len(self._pending) > self.PENDING:
            self._pending.popleft().result()

    def hear(self, data: Any) -> Callable[[], None]:
        """The next bytes of the base, which may be overwritten once what is returned has ended."""
        assert self.digest is not None
        self.wait()
        self._base = self._threads[-1].submit(self.digest.update, data)
        return self.wait

    def wait(self) -> None:
        """Until the base's digest has all that was heard."""
        if self._base is not None:
            self._base.result()

    def __exit__(self, *_: object) -> None:
        for thread in self._threads:
            thread.shutdown()
