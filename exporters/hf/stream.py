"""Slicing a checkpoint file by file: a piece is read, cut and written before the next one is read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np

from ...artefact import combine_tensor_digests, tensor_hasher
from ...base import INDEX
from ...progress import Progress
from ...slicing import Indices, Slices
from ...tensors import CheckpointReader, TensorInfo, fsync_file, write_header

PIECE = 1 << 24


@dataclass(frozen=True)
class Sliced:
    """What was written: parameters and bytes of the backbone, its digest, and `{file: {"sha256", "size"}}`."""

    parameters: int
    digest: str
    files: dict[str, dict[str, Any]]


def slice_checkpoint(reader: CheckpointReader, slices: Slices, skip: set[str], output: Path, progress: Progress) -> Sliced:
    """Write the sliced tensors of every file of `reader` into `output`, in the order and sharding of the source.

    Args:
        slices: what stays of which tensor; indices were checked against the tensor's shape.
        skip: tensors that are not written (a tied head).
    """
    digests: dict[str, str] = {}
    files: dict[str, dict[str, Any]] = {}
    weight_map: dict[str, str] = {}
    parameters = total = 0
    count = len(reader.tensors)
    progress.start("slice", count, 0)
    for path, tensors in reader.by_file.items():
        written = {name: info for name, info in tensors.items() if name not in skip}
        shapes = {name: _shape(info, slices.get(name)) for name, info in written.items()}
        hasher = hashlib.sha256()
        with open(output / path.name, "wb") as file:
            _emit(file, hasher, write_header({name: (info.dtype, shapes[name]) for name, info in written.items()}))
            for name, info in written.items():
                digests[name] = _write_tensor(reader, name, info, shapes[name], slices.get(name), file, hasher)
                weight_map[name] = path.name
                parameters += prod(shapes[name])
                total += prod(shapes[name]) * info.itemsize
                progress.advance("slice", len(digests), {})
            fsync_file(file)
            files[path.name] = {"sha256": hasher.hexdigest(), "size": file.tell()}
    if len(reader.by_file) > 1:
        index = {"metadata": {"total_size": total, "total_parameters": parameters}, "weight_map": dict(sorted(weight_map.items()))}
        (output / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return Sliced(parameters, combine_tensor_digests(digests), files)


def _shape(info: TensorInfo, cuts: Mapping[int, Indices] | None) -> tuple[int, ...]:
    return tuple(len(cuts[d]) if cuts is not None and d in cuts else size for d, size in enumerate(info.shape))


def _write_tensor(
    reader: CheckpointReader,
    name: str,
    info: TensorInfo,
    shape: tuple[int, ...],
    cuts: Mapping[int, Indices] | None,
    file: IO[bytes],
    file_hasher: Any,
) -> str:
    hasher = tensor_hasher(info.dtype, shape)
    if cuts is None:
        for part in reader.read_bytes(name, PIECE):
            _emit(file, file_hasher, part)
            hasher.update(part)
        return str(hasher.hexdigest())
    for first, rows in reader.read_rows(name, PIECE):
        if 0 in cuts:
            low, high = np.searchsorted(cuts[0], (first, first + len(rows)))
            rows = rows[cuts[0][low:high] - first]
        if 1 in cuts:
            rows = np.take(rows, cuts[1], axis=1)
        data = np.ascontiguousarray(rows).reshape(-1).view(np.uint8).data
        _emit(file, file_hasher, data)
        hasher.update(data)
    return str(hasher.hexdigest())


def _emit(file: IO[bytes], hasher: Any, data: Any) -> None:
    file.write(data)
    hasher.update(data)
