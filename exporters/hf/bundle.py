"""Writing one domain's memory as a standalone bundle for the sliced backbone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...artefact import ADAPTER_CONFIG, ADAPTER_WEIGHTS, FORMAT, KV_MEMORY, MEMORY_FILE, file_entry
from ...errors import IntegrityError
from ...files import write_atomically, write_json
from ...slicing import Slices, take


def write_bundle(
    source: Path,
    target: Path,
    domain: str,
    adapter_cuts: Slices,
    kv_cuts: Slices,
    backbone: str,
    figures: Mapping[str, Any],
    state: Mapping[str, Any],
) -> None:
    """Slice the memory in the run folder `source` into the bundle `target`.

    Args:
        backbone: the digest of the backbone that it is for.
        figures: of this domain, from `evaluate`.
    """
    memory = state["recipe"]["memory"]
    parameters: dict[str, int] = {}
    files = []
    if memory["lora"] is not None:
        parameters["lora"] = _slice_file(source / ADAPTER_WEIGHTS, target / ADAPTER_WEIGHTS, adapter_cuts)
        config = json.loads((source / ADAPTER_CONFIG).read_text(encoding="utf-8"))
        write_json(target / ADAPTER_CONFIG, config | {"base_model_name_or_path": None})
        files += [ADAPTER_WEIGHTS, ADAPTER_CONFIG]
    if memory["kv"] is not None:
        parameters["kv"] = _slice_file(source / KV_MEMORY, target / KV_MEMORY, kv_cuts)
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


def _slice_file(source: Path, target: Path, cuts: Slices) -> int:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file, save

    try:
        tensors = load_file(source)
    except (OSError, SafetensorError) as error:
        raise IntegrityError(f"{source}: cannot be read ({error}); resume the run to write it again.") from None
    sliced = {name: take(value, cuts.get(name)) for name, value in tensors.items()}
    write_atomically(target, save(sliced, metadata={"format": "pt"}))
    return sum(value.size for value in sliced.values())
