"""Files that stages write into the run folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from ..artefact.names import ADAPTER_CONFIG, ADAPTER_WEIGHTS, FORMAT, KV_MEMORY, MEMORY_FILE, NEURONS
from ..parallel import ranks
from ..storage.files import make_folder, write_atomically, write_json
from ..training.context import Context
from ..training.restoring import stored_dtype


def save_memories(context: Context) -> None:
    """Write every domain's memory, at the widths of the unsliced base. Of several processes the leader
    writes, but all round restored neurons to what is stored."""
    memories = context.student.memories
    if memories is None:
        return
    for domain in memories.domains:
        folder = context.run.memory_dir(domain)
        if ranks.leads():
            make_folder(folder)
        adapter, kv = memories.adapter(domain), memories.kv_tensors(domain)
        if adapter is not None:
            config, tensors = adapter
            _write_json(folder / ADAPTER_CONFIG, json.loads(json.dumps(config, default=str)))
            _write_tensors(folder / ADAPTER_WEIGHTS, tensors)
        if kv is not None:
            _write_tensors(folder / KV_MEMORY, kv)
        if memories.neurons:
            neurons = memories.neuron_tensors(domain, stored_dtype(context.student.spec))
            _write_tensors(folder / NEURONS, neurons or {})
        _write_json(folder / MEMORY_FILE, {"koffkit": FORMAT, "domain": domain, "layers": memories.layers})


def _write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    if ranks.leads():
        write_atomically(path, save(tensors, metadata={"format": "pt"}))


def _write_json(path: Path, value: Any) -> None:
    if ranks.leads():
        write_json(path, value)
