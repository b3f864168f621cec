"""From a sliced checkpoint with its bundles to the files of llama.cpp."""

from __future__ import annotations

from pathlib import Path

import torch

from ...artefact.bundle import Bundle, MemoryFolder
from ...artefact.names import MEMORIES, SERVING
from ...checkpoint.reader import CheckpointReader
from ...masks.memory_cuts import MemoryCuts
from ...progress import Progress
from ...storage.files import write_json
from ..toolkit.rotation import Rotary
from .adapter import write_adapter
from .metadata import write_metadata
from .plan import GgufPlan
from .serving import KvFiles, MemoryFiles, Serving
from .state import read_layers, write_state
from .weights import check_written, plan_tensors, smallest_type, write_tensors

MODEL = "model.gguf"


def convert(
    plan: GgufPlan, checkpoint: Path, bundles: list[Bundle], output: Path, progress: Progress
) -> Serving:
    """Write the model, adapters and state files.

    Args:
        plan: what to write.
        checkpoint: the sliced backbone.
        bundles: its memories; none for a merged one.
        output: the export's folder, with its `backbone` and `memories`.
        progress: told of every tensor.

    Returns:
        which file is what.

    Raises:
        UsageError: a number does not fit into the type.
        IntegrityError: a file is damaged, or what was written is not what was meant.
    """
    reader = CheckpointReader(checkpoint)
    kind = smallest_type(reader) if plan.options.type == "auto" else plan.options.type
    _write_model(plan, reader, kind, output / "backbone" / MODEL, progress)
    memories = {bundle.domain: _write_memory(plan, checkpoint, bundle, output) for bundle in bundles}
    if plan.merge is not None and plan.has_kv:
        domain = plan.merge.memory.domain
        memories[domain] = MemoryFiles(kv=_write_kv(plan, checkpoint, plan.merge.memory, output))
    serving = Serving(
        model=f"backbone/{MODEL}",
        architecture=plan.target.arch.name,
        type=kind,
        context=plan.target.context_length,
        state_version=plan.options.state_version,
        cache_type=plan.options.cache_type,
        memories=memories,
    )
    write_json(output / SERVING, serving.model_dump(mode="json", exclude_none=True))
    return serving


def _write_model(plan: GgufPlan, reader: CheckpointReader, kind: str, path: Path, progress: Progress) -> None:
    from gguf import GGUFWriter

    writer = GGUFWriter(None, plan.target.arch.name)
    write_metadata(writer, plan.target, plan.run.name, kind)
    plan.vocabulary.write(writer)
    planned = plan_tensors(reader, plan.target, kind)
    digests = write_tensors(writer, path, reader, plan.target, planned, progress)
    check_written(path, planned, digests)


def _write_memory(plan: GgufPlan, checkpoint: Path, bundle: Bundle, output: Path) -> MemoryFiles:
    lora = None
    if bundle.adapter_file is not None:
        lora = f"{MEMORIES}/{bundle.domain}.gguf"
        write_adapter(output / lora, bundle, plan.target)
    kv = _write_kv(plan, checkpoint, bundle, output) if plan.has_kv else None
    return MemoryFiles(lora=lora, kv=kv)


def _write_kv(plan: GgufPlan, checkpoint: Path, memory: MemoryFolder, output: Path) -> KvFiles:
    """Both layouts of a KV memory: with flash attention and without."""
    cut = None
    if plan.merge is not None:
        cut = MemoryCuts(plan.run.spec, plan.merge.masks).kv
    rotate = Rotary(checkpoint)
    layers = [
        (rotate(torch.from_numpy(key).double(), index).numpy(), value)
        for index, (key, value) in enumerate(read_layers(memory, cut, plan.target))
    ]
    place = plan.domains.index(memory.domain)
    sentinel = plan.vocabulary.sentinels(len(plan.domains))[place]
    files = KvFiles(
        tokens=layers[0][0].shape[1],
        sentinel=sentinel,
        file=f"{memory.domain}.state",
        file_flash_attention=f"{memory.domain}.state-fa",
    )
    for name, flash in ((files.file, False), (files.file_flash_attention, True)):
        write_state(
            output / MEMORIES / name,
            layers,
            plan.target,
            sentinel,
            version=plan.options.state_version,
            cache_type=plan.options.cache_type,
            flash_attention=flash,
        )
    return files
