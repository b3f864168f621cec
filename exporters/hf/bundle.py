"""Writing one domain's memory as a standalone bundle for the sliced backbone."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...arch import Architecture, Shape
from ...artefact import ADAPTER_CONFIG, ADAPTER_WEIGHTS, FORMAT, KV_MEMORY, MEMORY_FILE, file_entry
from ...errors import IntegrityError
from ...files import write_atomically, write_json
from ...slicing import adapter_slices, kv_memory_keeps, take, take_kv, zero_rows
from ...structures import Masks


class MemoryCuts:
    """What stays of the memories of one backbone, tensor by tensor."""

    def __init__(self, arch: Architecture, shape: Shape, masks: Masks) -> None:
        self._adapter, self._zeros = adapter_slices(arch, shape, masks), zero_rows(arch, shape, masks)
        self._kv = kv_memory_keeps(arch, shape, masks)

    def adapter(self, name: str, value: NDArray[Any]) -> NDArray[Any]:
        if name in self._zeros:
            value = value.copy()
            value[self._zeros[name]] = 0
        return take(value, self._adapter.get(name))

    def kv(self, name: str, value: NDArray[Any]) -> NDArray[Any]:
        return take_kv(value, self._kv.get(name))


def write_bundle(
    source: Path,
    target: Path,
    domain: str,
    cuts: MemoryCuts,
    backbone: str,
    figures: Mapping[str, Any],
    state: Mapping[str, Any],
) -> None:
    """Slice the memory in the run folder `source` into the bundle `target`.

    Args:
        cuts: what stays of an adapter and of a KV memory.
        backbone: the digest of the backbone that it is for.
        figures: of this domain, from `evaluate`.
    """
    memory = state["recipe"]["memory"]
    parameters: dict[str, int] = {}
    files = []
    if memory["lora"] is not None:
        parameters["lora"] = _slice_file(source / ADAPTER_WEIGHTS, target / ADAPTER_WEIGHTS, cuts.adapter)
        config = json.loads((source / ADAPTER_CONFIG).read_text(encoding="utf-8"))
        write_json(target / ADAPTER_CONFIG, config | {"base_model_name_or_path": None})
        files += [ADAPTER_WEIGHTS, ADAPTER_CONFIG]
    if memory["kv"] is not None:
        parameters["kv"] = _slice_file(source / KV_MEMORY, target / KV_MEMORY, cuts.kv)
        files.append(KV_MEMORY)
    info = {
        "koffkit": FORMAT,
        "domain": domain,
        "backbone_digest": backbone,
        "layers": state["memory_layers"],
        "lora": memory["lora"],
        "kv": memory["kv"],
        "parameters": sum(parameters.values()),
        "parameters_by_half": parameters,
        "figures": figures,
        "files": {name: file_entry(target / name) for name in files},
    }
    write_json(target / MEMORY_FILE, info)


def _slice_file(source: Path, target: Path, cut: Callable[[str, NDArray[Any]], NDArray[Any]]) -> int:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file, save

    try:
        tensors = load_file(source)
    except (OSError, SafetensorError) as error:
        raise IntegrityError(f"{source}: cannot be read ({error}); resume the run to write it again.") from None
    sliced = {name: np.ascontiguousarray(cut(name, value)) for name, value in tensors.items()}
    write_atomically(target, save(sliced, metadata={"format": "pt"}))
    return sum(value.size for value in sliced.values())
