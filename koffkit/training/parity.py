"""The exporter's parity check, run before training, so that nothing is refused after hours."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..checkpoint.spec import ModelSpec
from ..masks.container import open_complete, sliced_config
from ..masks.convert import as_masks
from ..masks.masks import Masks
from ..masks.memory_cuts import MemoryCuts
from ..masks.sliced_reader import SlicedReader
from ..masks.slicing import backbone_slices, zero_rows
from ..model.bundles import MemoryTensors
from ..model.kv_attention import KVMemory
from ..model.loaded import LoadedWeights
from ..model.memory import Memories, lora_config
from ..parallel import ranks
from ..parity.compare import require_same
from ..parity.probe import Probe
from ..progress import StepCounter
from .context import Context


def check_first_masks(context: Context) -> None:
    """Compare the base, masked by the projection of the initial gates, with its slice, without and with a
    random memory. Of several processes the leader does it.

    The sliced side is read from the base's files by koffkit and cut on the way, the masked side as
    transformers reads it; nothing is written.

    Raises:
        IntegrityError: they differ.
    """
    gates, memories = context.student.gates, context.student.memories
    if gates is None or not ranks.leads():
        return
    context.progress.message("checking that masked and sliced agree")
    step = StepCounter(context.progress, "first parity", 2 * context.student.spec.num_layers + 2)
    spec = open_complete(context.student.spec.folder)
    masks = as_masks(gates.hard(context.budget))
    whole = [] if memories is None or not memories.exist else [_random(memories, context.loaded.recipe.seed)]
    reader = SlicedReader(spec.folder, backbone_slices(spec, masks), zero_rows(spec, masks))
    sliced = Probe(
        spec.folder,
        [_cut(memory, spec, masks) for memory in whole],
        view=(sliced_config(spec, masks), reader),
        layer_done=step,
    )
    tokens, domains = sliced.tokens(), [memory.domain for memory in whole]
    with LoadedWeights(spec.folder) as loaded:
        step()
        masked = Probe(spec.folder, whole, masks, loaded=loaded, layer_done=step)
        hidden, expected = (probe.hidden(tokens, [None, *domains]) for probe in (sliced, masked))
        require_same(
            sliced, hidden, masked, expected, domains, "nothing was learned, for the export would be refused"
        )
        step()


def _random(memories: Memories, seed: int) -> MemoryTensors:
    """A random memory of the first domain's shapes. LoRA starts at zero, which would hide errors in its
    slicing."""
    generator = torch.Generator().manual_seed(seed)

    def random_like(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator) / math.sqrt(like.shape[-1])

    domain = memories.domains[0]
    adapter, kv = memories.adapter(domain), memories.kv_tensors(domain)
    lora = None if memories.lora is None else lora_config(memories.lora, memories.layers)
    tensors = {} if adapter is None else {name: random_like(value) for name, value in adapter[1].items()}
    return MemoryTensors(
        domain, lora, tensors, _by_layer({name: random_like(value) for name, value in (kv or {}).items()})
    )


def _cut(memory: MemoryTensors, spec: ModelSpec, masks: Masks) -> MemoryTensors:
    cuts = MemoryCuts(spec, masks)
    adapter = {
        name: torch.from_numpy(cuts.adapter(name, value.numpy())) for name, value in memory.adapter.items()
    }
    halves = {
        f"layers.{index}.{half}": getattr(pair, half)
        for index, pair in memory.kv.items()
        for half in ("key", "value")
    }
    kv = {name: torch.from_numpy(cuts.kv(name, value.numpy())) for name, value in halves.items()}
    return MemoryTensors(memory.domain, memory.lora, adapter, _by_layer(kv))


def _by_layer(tensors: dict[str, Tensor]) -> dict[int, KVMemory]:
    layers = sorted({int(name.split(".")[1]) for name in tensors})
    return {
        index: KVMemory(tensors[f"layers.{index}.key"], tensors[f"layers.{index}.value"]) for index in layers
    }
