"""The stages themselves, by recipe name."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import save
from torch import Tensor

from ..artefact import ADAPTER_CONFIG, ADAPTER_WEIGHTS, FORMAT, KV_MEMORY, MEMORY_FILE
from ..files import write_atomically, write_json
from ..model.gating import as_masks
from ..recipe.schema import Learned
from ..structures import Masks, kept_counts, save_masks
from .base import Context, StageRunner, stage_options
from .checkpoint import Checkpoint
from .evaluate import evaluate_domains
from .placement import layers_worth_keeping
from .route import RouteStage
from .training import DistillationLoop


class LearnMasks:
    """Gates and memories jointly; ends with the projection of the scores onto the exact budget (method, section 3)."""

    name = "learn_masks"

    def run(self, context: Context, resume: Checkpoint | None) -> None:
        options = stage_options(context, self.name)
        loop = DistillationLoop(context, self.name, options, train_gates=True)
        loop.run(resume)
        masks = set_masks(context)
        placement = context.loaded.recipe.memory.layers
        if isinstance(placement, Learned) and loop.with_memory:
            keep_layers(context, layers_worth_keeping(loop, masks, placement.learned_bytes))
        save_memories(context)


class Recover:
    """Mask fixed and hard, memories only."""

    name = "recover"

    def run(self, context: Context, resume: Checkpoint | None) -> None:
        options = stage_options(context, self.name)
        loop = DistillationLoop(context, self.name, options, train_gates=False)
        loop.run(resume)
        save_memories(context)


class Evaluate:
    """Perplexity, KL and recall per domain: unpruned, backbone alone, matched memory, every other memory."""

    name = "evaluate"

    def run(self, context: Context, resume: Checkpoint | None) -> None:
        context.results |= evaluate_domains(context, stage_options(context, self.name))


RUNNERS: dict[str, StageRunner] = {runner.name: runner for runner in (LearnMasks(), Recover(), RouteStage(), Evaluate())}


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
