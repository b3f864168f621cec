"""A KV memory as the saved state of one sequence of llama.cpp, which llama-server restores into a slot.

To llama.cpp the P memory tokens are text that it has read: P copies of one token, the *sentinel*, at
positions 0 to P - 1. Memory keys of koffkit are not rotated, and text begins at position 0; here it begins
at position P, so every key is turned by the angle of P, and differences of position are the same.
llama-server looks up what it has read by tokens alone, so each memory needs a sentinel of its own.

Layout of the file, little-endian (llama.cpp's `llama_state_seq_save_file`):

    u32 magic, u32 version, u32 P, i32 sentinel * P
    u32 streams (1), u32 P, P * (i32 position, u32 sequences (1), i32 sequence (0))
    u32 values transposed, u32 layers, version 4: u32 rotation of keys (0), u32 rotation of values (0)
    every layer: i32 type, u64 bytes a token, keys [P, K * H]
    every layer: i32 type, u64 bytes a token, values [P, K * H]; or transposed, as without flash attention:
                 i32 type, u32 bytes a number, u32 K * H, values [K * H, P]

Legend: K KV heads, P memory tokens, H head dim.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...artefact.bundle import MemoryFolder
from ...errors import IntegrityError
from ...model.bundles import load_tensors
from ...storage.files import write_atomically
from .rotary import as_neighbours
from .target import Target

Array = NDArray[Any]
Layer = tuple[Array, Array]
MAGIC = 0x67677371
VERSIONS = (2, 3, 4)
TYPES = {"f32": (0, np.float32), "f16": (1, np.float16)}
"""ggml's number of a type, and numpy's type."""


def read_layers(
    memory: MemoryFolder, cut: Callable[[str, Array], Array] | None, target: Target
) -> list[Layer]:
    """Keys and values [K, P, H] of every layer at the widths of the backbone, unrotated.

    Args:
        memory: a memory with a KV half in every layer.
        cut: cuts a tensor of a memory at the widths of the base; None: it has those of the backbone.
        target: what the backbone becomes.

    Raises:
        IntegrityError: a tensor is missing, or does not fit the backbone.
    """
    assert memory.kv_file is not None
    tensors = {name: value.float().numpy() for name, value in load_tensors(memory.kv_file).items()}
    layers: list[Layer] = []
    tokens = None
    for index, widths in enumerate(target.widths):
        pair = []
        for half in ("key", "value"):
            name = f"layers.{index}.{half}"
            value = tensors.get(name)
            if value is not None and cut is not None:
                value = cut(name, value)
            tokens = tokens if tokens is not None or value is None else value.shape[1]
            wanted = (widths.kv_heads, tokens, target.spec.shape.head_dim)
            if value is None or value.shape != wanted:
                shape = None if value is None else list(value.shape)
                raise IntegrityError(f"{memory.kv_file}: {name}: shape {shape}, {list(wanted)} expected.")
            pair.append(value)
        layers.append((pair[0], pair[1]))
    return layers


def write_state(
    path: Path,
    layers: Sequence[Layer],
    target: Target,
    sentinel: int,
    *,
    version: int,
    cache_type: str,
    flash_attention: bool,
) -> None:
    """Write the state file of a KV memory.

    Args:
        path: the file.
        layers: keys, rotated by the angle of position P, and values [K, P, H] of every layer.
        target: what the backbone becomes.
        sentinel: the token that stands for each memory token.
        version: of the format, as the consumer's build has it.
        cache_type: the type of the consumer's cache, `f16` or `f32`.
        flash_attention: whether the consumer's cache is laid out for it.
    """
    count = layers[0][0].shape[1]
    number, dtype = TYPES[cache_type]
    parts: list[bytes] = [
        struct.pack("<3I", MAGIC, version, count),
        np.full(count, sentinel, dtype="<i4").tobytes(),
        struct.pack("<2I", 1, count),
        np.array([(position, 1, 0) for position in range(count)], dtype="<i4").tobytes(),
        struct.pack("<2I", not flash_attention, len(layers)),
        struct.pack("<2I", 0, 0) if version >= 4 else b"",
    ]
    for key, _ in layers:
        rows = _rows(as_neighbours(key, 2, 1) if target.arch.interleaved else key).astype(dtype)
        parts += [struct.pack("<iQ", number, rows.itemsize * rows.shape[1]), rows.tobytes()]
    for _, value in layers:
        rows = _rows(value).astype(dtype)
        if flash_attention:
            parts += [struct.pack("<iQ", number, rows.itemsize * rows.shape[1]), rows.tobytes()]
        else:
            head = struct.pack("<i2I", number, rows.itemsize, rows.shape[1])
            parts += [head, np.ascontiguousarray(rows.T).tobytes()]
    write_atomically(path, b"".join(parts))


def _rows(tensor: Array) -> Array:
    """[K, P, H] as one row a token, [P, K * H]."""
    heads, tokens, size = tensor.shape
    rows: Array = tensor.transpose(1, 0, 2).reshape(tokens, heads * size)
    return rows
