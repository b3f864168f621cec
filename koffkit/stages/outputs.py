"""What stages leave in the run folder."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import save
from torch import Tensor

from ..artefact.names import ADAPTER_CONFIG, ADAPTER_WEIGHTS, FORMAT, KV_MEMORY, MEMORY_FILE
from ..masks.convert import as_masks
from ..masks.file import save_masks
from ..masks.masks import Masks, kept_counts
from ..storage.files import write_atomically, write_json
from ..training.context import Context


def set_masks(context: Context) -> Masks:
    """Project the learned scores onto the budget and write `masks.safetensors`."""
    student = context.student
    assert student.gates is not None
    context.masks = student.gates.hard(context.budget)
    masks = as_masks(context.masks)
    save_masks(masks, context.run.masks_file)
    context.learned["budget"] = context.budget.realised(kept_counts(masks)).to_json()
    return masks


def keep_layers(context: Context, layers: list[int]) -> None:
    """Settle which layers carry memory from now on."""
    if context.student.memories is not None:
        context.student.memories.keep_layers(layers)
        context.learned["memory_layers"] = layers


def save_memories(context: Context) -> None:
    """Write every domain's memory, at the widths of the unsliced base."""
    memories = context.student.memories
    if memories is None:
        return
    for domain in memories.domains:
        folder = context.run.memory_dir(domain)
        folder.mkdir(parents=True, exist_ok=True)
        adapter, kv = memories.adapter(domain), memories.kv_tensors(domain)
        if adapter is not None:
            config, tensors = adapter
            write_json(folder / ADAPTER_CONFIG, json.loads(json.dumps(config, default=str)))
            _write_tensors(folder / ADAPTER_WEIGHTS, tensors)
        if kv is not None:
            _write_tensors(folder / KV_MEMORY, kv)
        write_json(folder / MEMORY_FILE, {"koffkit": FORMAT, "domain": domain, "layers": memories.layers})


def _write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    write_atomically(path, save(tensors, metadata={"format": "pt"}))
