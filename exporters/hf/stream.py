"""Slicing a checkpoint file by file: a piece is read, cut and written before the next one is read."""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from ...arch.spec import Indices
from ...artefact import combine_tensor_digests, tensor_hasher
from ...base import INDEX
from ...progress import Progress
from ...slicing import Slices
from ...tensors import CheckpointReader, TensorInfo, fsync_file, write_header

PIECE = 1 << 24


@dataclass(frozen=True)
class Sliced:
    """What was written: parameters and bytes of the backbone, its digest, and `{file: {"sha256", "size"}}`."""

    parameters: int
    digest: str
    files: dict[str, dict[str, Any]]


def slice_checkpoint(
    reader: CheckpointReader, slices: Slices, zeros: Mapping[str, Indices], skip: set[str], output: Path, progress: Progress
) -> Sliced:
    """Write the sliced tensors of every file of `reader` into `output`, in the order and sharding of the source.

    Args:
        slices: what stays of which tensor; indices were checked against the tensor's shape.
        zeros: rows of tensors that stay and become zero.
        skip: tensors that are not written (a tied head).
    """
    hashes: dict[str, Any] = {}
    files: dict[str, tuple[Any, int]] = {}
    weight_map: dict[str, str] = {}
    parameters = total = 0
    count = len(reader.tensors)
    progress.start("slice", count, 0)
    with _Hashing() as hashing:
        for path, tensors in reader.by_file.items():
            written = {name: info for name, info in tensors.items() if name not in skip}
            shapes = {name: _shape(info, slices.get(name)) for name, info in written.items()}
            file_hash = hashlib.sha256()
            with open(output / path.name, "wb") as file:
                header = write_header({name: (info.dtype, shapes[name]) for name, info in written.items()})
                file.write(header)
                hashing.update(header, file_hash)
                for name, info in written.items():
                    hashes[name] = tensor_hasher(info.dtype, shapes[name])
                    for data in _pieces(reader, name, slices.get(name), zeros.get(name)):
                        file.write(data)
                        hashing.update(data, file_hash, hashes[name])
                    weight_map[name] = path.name
                    parameters += prod(shapes[name])
                    total += prod(shapes[name]) * info.itemsize
                    progress.advance("slice", len(hashes), {})
                fsync_file(file)
                files[path.name] = file_hash, file.tell()
    if len(reader.by_file) > 1:
        index = {"metadata": {"total_size": total, "total_parameters": parameters}, "weight_map": dict(sorted(weight_map.items()))}
        (output / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    digests = {name: hasher.hexdigest() for name, hasher in hashes.items()}
    entries = {name: {"sha256": hasher.hexdigest(), "size": size} for name, (hasher, size) in files.items()}
    return Sliced(parameters, combine_tensor_digests(digests), entries)


def _shape(info: TensorInfo, cuts: Mapping[int, Indices] | None) -> tuple[int, ...]:
    return tuple(len(cuts[d]) if cuts is not None and d in cuts else size for d, size in enumerate(info.shape))


def _pieces(reader: CheckpointReader, name: str, cuts: Mapping[int, Indices] | None, zeros: Indices | None) -> Iterator[Any]:
    """What stays of a tensor, in order, as buffers of their own."""
    if cuts is None and zeros is None:
        yield from reader.read_bytes(name, PIECE)
        return
    cuts = cuts or {}
    for first, rows in reader.read_rows(name, PIECE):
        if zeros is not None:
            rows[_within(zeros, first, len(rows))] = 0
        if 0 in cuts:
            rows = rows[_within(cuts[0], first, len(rows))]
        if 1 in cuts:
            rows = np.take(rows, cuts[1], axis=1)
        yield (rows if cuts else rows.copy()).reshape(-1).view(np.uint8).data


def _within(indices: Indices, first: int, count: int) -> Indices:
    """Those of the ascending `indices` that lie in a piece of `count` rows, counted from its first."""
    low, high = np.searchsorted(indices, (first, first + count))
    return indices[low:high] - first


class _Hashing:
    """Digests of a file and of its tensors, on a thread each: one after the other they take longer than reading, cutting and
    writing together."""

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
