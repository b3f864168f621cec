"""From a sliced checkpoint with its bundles to the files that OpenVINO GenAI loads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ...artefact.manifest import Consumer
from ...artefact.names import MEMORIES
from ...checkpoint.files import CONFIG
from ...checkpoint.spec import ModelSpec
from ...model.bundles import load_memory
from ...storage.files import write_json
from ..toolkit import Checkpoint, Draft, copy_license, copy_tokenizer
from .adapter import adapter_tensors, write_adapter
from .convert import compress, to_ir, write_ir
from .gate import check_export
from .places import add_places
from .plan import OpenvinoPlan
from .runtime import in_one_line

if TYPE_CHECKING:
    from ...model.bundles import MemoryTensors


@dataclass(frozen=True)
class Written:
    """What was written.

    Attributes:
        memories: the file of each memory by name.
        tokens: of the places for KV memories; 0: there are none.
        consumer: what OpenVINO computes with it; None: it was not run.
    """

    memories: dict[str, Path]
    tokens: int
    consumer: Consumer | None


def write_files(draft: Draft, checkpoint: Checkpoint, plan: OpenvinoPlan) -> Written:
    """Write IR, tokenizer and memories, and run them.

    Args:
        draft: the export.
        checkpoint: to make them from.
        plan: what to write.

    Raises:
        IntegrityError: a file is damaged, or what was written does not compute what the run learned.
    """
    source, bundles = checkpoint.folder, checkpoint.bundles
    spec = ModelSpec.open(source, family=draft.run.spec.arch.model_type)
    memories = [load_memory(bundle, spec.widths, spec.shape.hidden) for bundle in bundles]
    if not plan.has_kv:
        memories = [replace(memory, kv={}) for memory in memories]
    tokens = max((kv.key.shape[1] for memory in memories for kv in memory.kv.values()), default=0)
    draft.backbone.mkdir()
    _write_ir(draft, source, plan, spec, memories, tokens)
    _copy_small_files(draft, plan, spec)
    adapters = {}
    for bundle, memory in zip(bundles, memories, strict=True):
        (draft.folder / MEMORIES).mkdir(exist_ok=True)
        path = draft.folder / MEMORIES / f"{bundle.domain}.safetensors"
        adapters[bundle.domain] = path, adapter_tensors(bundle, memory.kv, tokens)
        write_adapter(*adapters[bundle.domain])
    consumer = check_export(draft, source, memories, adapters, checkpoint.figures, plan.options.weights)
    return Written({name: path for name, (path, _) in adapters.items()}, tokens, consumer)


def _write_ir(
    draft: Draft,
    checkpoint: Path,
    plan: OpenvinoPlan,
    spec: ModelSpec,
    memories: Sequence[MemoryTensors],
    tokens: int,
) -> None:
    draft.progress.message("converting to OpenVINO")
    with draft.timed("convert"), in_one_line("the conversion"):
        ir = to_ir(checkpoint)
        if plan.options.weights != "auto":
            ir = compress(ir, plan.options.weights)
        if tokens:
            add_places(ir, {layer for memory in memories for layer in memory.kv}, spec.widths, tokens)
        write_ir(ir, draft.backbone)
        plan.tokenizer.write(draft.backbone)


def _copy_small_files(draft: Draft, plan: OpenvinoPlan, spec: ModelSpec) -> None:
    """Config, tokenizer with its chat template, generation config, license."""
    config = {key: value for key, value in spec.config.items() if key != "auto_map"}  # its code is not here
    write_json(draft.backbone / CONFIG, config)
    copy_tokenizer(plan.run.spec.folder, draft.backbone)
    copy_license(draft)
