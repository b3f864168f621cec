"""The backbone's tensors in a GGUF file: names, order of rotary channels, types."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...checkpoint.reader import CheckpointReader
from ...errors import IntegrityError, UsageError
from ...progress import Progress
from .rotary import as_neighbours, llama3_factors
from .target import Target

Array = NDArray[Any]
STORED = {"F32": "f32", "F64": "f32", "F16": "f16", "BF16": "bf16"}
"""The type of a checkpoint's tensors -> the type that holds every bit of them."""
ROPE_FACTORS = "rope_freqs.weight"


@dataclass(frozen=True)
class Planned:
    """One tensor to write.

    Attributes:
        source: its name in the checkpoint; None: it is computed.
        name: its name in the file.
        shape: rows first.
        kind: a `GGMLQuantizationType`.
    """

    source: str | None
    name: str
    shape: tuple[int, ...]
    kind: Any

    @property
    def nbytes(self) -> int:
        """Of its data."""
        from gguf.constants import GGML_QUANT_SIZES

        block, size = GGML_QUANT_SIZES[self.kind]
        return prod(self.shape) // block * size


class Namer:
    """From names of transformers to names of ggml, by the table of the package `gguf`."""

    def __init__(self, target: Target) -> None:
        from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, get_tensor_name_map

        arch = next(key for key in MODEL_ARCH if MODEL_ARCH_NAMES[key] == target.arch.name)
        self._map = get_tensor_name_map(arch, target.spec.num_layers)

    def __call__(self, name: str) -> str:
        """The name of a tensor in the file.

        Raises:
            IntegrityError: the table does not know it.
        """
        found = self._map.get_name(name, try_suffixes=(".weight", ".bias"))
        if found is None:
            raise IntegrityError(f"{name}: the package gguf has no name for this tensor; please report this.")
        return str(found)


def smallest_type(reader: CheckpointReader) -> str:
    """The type that holds a checkpoint's matrices without rounding them."""
    kinds = {STORED[info.dtype] for info in reader.tensors.values() if len(info.shape) > 1}
    return kinds.pop() if len(kinds) == 1 else "f32"


def plan_tensors(reader: CheckpointReader, target: Target, kind: str) -> list[Planned]:
    """What to write, in the checkpoint's order. Vectors are always f32; a matrix whose rows are no whole
    blocks of a quantised type is f16.

    Args:
        reader: the sliced checkpoint.
        target: what it becomes.
        kind: `f32`, `f16`, `bf16` or `q8_0`.
    """
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    namer, wanted = Namer(target), GGMLQuantizationType[kind.upper()]
    block = GGML_QUANT_SIZES[wanted][0]
    planned = []
    for name, info in reader.tensors.items():
        chosen = wanted if info.shape[-1] % block == 0 else GGMLQuantizationType.F16
        if len(info.shape) == 1:
            chosen = GGMLQuantizationType.F32
        planned.append(Planned(name, namer(name), info.shape, chosen))
    if target.rope.get("rope_type", "default") == "llama3":
        size = target.spec.shape.head_dim // 2
        planned.append(Planned(None, ROPE_FACTORS, (size,), GGMLQuantizationType.F32))
    return planned


def tensor_data(item: Planned, reader: CheckpointReader, target: Target) -> Array:
    """The numbers of a tensor as float32, in llama.cpp's order of channels."""
    if item.source is None:
        factors = llama3_factors(target.config, target.rope, target.spec.shape.head_dim)
        return factors.astype(np.float32)
    value: Array = reader.read(item.source).numpy()
    return in_order(item.source, value, target)


def in_order(name: str, value: Array, target: Target) -> Array:
    """Reorder the rows of a query or key projection (or of its bias, or of its LoRA B), where rotary pairs
    are neighbours.

    Args:
        name: the tensor's in the checkpoint, or its module's.
        value: outputs first.
        target: what the checkpoint becomes.
    """
    which = next((part for part in ("q_proj", "k_proj") if f".self_attn.{part}" in name), None)
    if which is None or not target.arch.interleaved:
        return value
    layer = int(name.split(".layers.", 1)[1].split(".", 1)[0])
    heads = target.widths[layer].kv_heads
    if which == "q_proj":
        heads *= target.spec.shape.queries_per_kv
    return as_neighbours(value, 0, heads)


def write_tensors(
    writer: Any,
    path: Path,
    reader: CheckpointReader,
    target: Target,
    planned: list[Planned],
    progress: Progress,
) -> dict[str, str]:
    """Write header, metadata and tensors, one tensor in memory at a time.

    Args:
        writer: a `GGUFWriter` with all metadata.
        path: the file.
        reader: the sliced checkpoint.
        target: what it becomes.
        planned: the tensors.
        progress: told of every tensor.

    Returns:
        sha256 of the data of every tensor, by name.

    Raises:
        UsageError: a number does not fit into the type.
    """
    for item in planned:
        writer.add_tensor_info(item.name, item.shape, np.dtype(np.float32), item.nbytes, raw_dtype=item.kind)
    writer.write_header_to_file(path)
    digests = {}
    try:
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        progress.start("gguf", len(planned), 0)
        for count, item in enumerate(planned, 1):
            data = stored(tensor_data(item, reader, target), item)
            writer.write_tensor_data(data)
            digests[item.name] = hashlib.sha256(data.tobytes()).hexdigest()
            progress.advance("gguf", count, {})
    finally:
        writer.close()
    return digests


def stored(value: Array, item: Planned) -> Array:
    """Numbers in the type of the file.

    Raises:
        UsageError: one is too large for it.
    """
    from gguf.quants import quantize

    with np.errstate(over="ignore"):
        data: Array = np.ascontiguousarray(quantize(value, item.kind))
    if data.dtype == np.float16 and not np.isfinite(data).all():
        raise UsageError(
            f"-o type: {item.source} has numbers beyond {np.finfo(np.float16).max:.0f}, the largest of f16; "
            "choose bf16 or f32."
        )
    return data


def check_written(path: Path, planned: list[Planned], digests: dict[str, str]) -> None:
    """Read the file back and compare names, shapes, types and bytes with what was meant.

    Raises:
        IntegrityError: they differ.
    """
    from gguf import GGUFReader

    found = {tensor.name: tensor for tensor in GGUFReader(path).tensors}
    for problem in _differences(planned, found, digests):
        raise IntegrityError(
            f"{path.name}: {problem}; nothing was published. Check the disk, and export again."
        )


def _differences(planned: list[Planned], found: dict[str, Any], digests: dict[str, str]) -> Iterator[str]:
    if found.keys() != digests.keys():
        yield f"{len(found)} tensors, {len(digests)} were written"
    for item in planned:
        tensor = found[item.name]
        if tuple(reversed(tensor.shape.tolist())) != item.shape or tensor.tensor_type != item.kind:
            yield f"{item.name} has shape {tensor.shape.tolist()} and type {tensor.tensor_type.name}"
        elif hashlib.sha256(tensor.data.tobytes()).hexdigest() != digests[item.name]:
            yield f"{item.name} is not what was written"
