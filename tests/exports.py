"""Exports with more memories than were learned: their tensors are those of learned ones, changed on disk."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file

from .common import write_record

FACTOR = {"adapter_model.safetensors": -2.0, "kv_memory.safetensors": -2.0, "neurons.safetensors": 8.0}


def changed_memory(bundle: Path, target: Path, domain: str, factor: float = 1.0) -> Path:
    """A copy of a bundle as another memory, whose weights are louder and turned around.

    Args:
        bundle: a bundle.
        target: the folder that is made.
        domain: of the copy.
        factor: what the weights are multiplied by, beside what makes them loud.
    """
    from koffkit.artefact.digests import file_entry

    shutil.copytree(bundle, target)
    for name, loud in FACTOR.items():
        if not (target / name).is_file():
            continue
        tensors = load_file(target / name)
        for key, value in tensors.items():
            if value.is_floating_point() and (name != "neurons.safetensors" or "down" in key):
                tensors[key] = value * loud * factor
        save_file(tensors, target / name, metadata={"format": "pt"})
    info = json.loads((target / "memory.json").read_text())
    info["files"] = {name: file_entry(target / name).to_json() for name in info["files"]}
    info.pop("golden", None)  # of the memory that this one was made from
    write_record(target / "memory.json", info | {"domain": domain})
    return target


def with_memories(export: Path, target: Path, names: dict[str, tuple[str, float]]) -> Path:
    """A copy of an export with more memories.

    Args:
        export: what is copied.
        target: the folder that is made.
        names: of the new memories: the one that each is made from, and a factor.
    """
    shutil.copytree(export, target)
    for name, (source, factor) in names.items():
        changed_memory(target / "memories" / source, target / "memories" / name, name, factor)
    return target
