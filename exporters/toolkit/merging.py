"""Backbone and one memory as one dense checkpoint (ours)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from ...artefact.bundle import MemoryFolder
from ...artefact.digests import backbone_digest
from ...artefact.manifest import Merged
from ...artefact.parts import Golden
from ...errors import IntegrityError, UsageError, near_name
from ...masks.masks import Masks
from ...masks.memory_cuts import MemoryCuts
from ...masks.slicing import backbone_slices, zero_rows
from ...planning.neurons import STRUCTURE, parameters_of_neuron
from ...run.finished import FinishedRun
from .parity import ParityFigures, summary
from .publishing import Draft
from .stream import Sliced

if TYPE_CHECKING:
    from ...model.merging import MergedReader
    from ...model.neuron_memory import NeuronMemory
    from ...parity.compare import Difference
    from ...parity.probe import Probe


@dataclass(frozen=True)
class MergePlan:
    """What is merged.

    Attributes:
        run: the run, whose masks keep the memory's restored neurons, too: it has the widths of the result.
        masks: of the backbone alone.
        memory: the memory's folder in the run.
        neurons: its restored neurons by layer.
        reader: the weights of the result.
    """

    run: FinishedRun
    masks: Masks
    memory: MemoryFolder
    neurons: NeuronMemory
    reader: MergedReader

    def entry(self, rounding: Mapping[str, float]) -> Merged:
        """What the manifest says about it."""
        halves = {
            "lora": self.memory.adapter_file is not None,
            "neurons": bool(self.neurons),
        }
        count = sum(len(own.index) for own in self.neurons.values())
        return Merged(
            domain=self.memory.domain,
            halves=[name for name, there in halves.items() if there],
            left_out=[] if self.memory.kv_file is None else ["kv"],
            neurons=count,
            parameters=count * parameters_of_neuron(self.run.spec),
            rounding=dict(rounding),
        )


def plan_merge(run: FinishedRun, domain: str) -> MergePlan:
    """Read a memory of a run for merging.

    Raises:
        UsageError: the run has no such memory, or nothing of it fits into weights.
        IntegrityError: the memory or the base is damaged.
    """
    from ...model.bundles import load_neurons
    from ...model.merging import MergedMemory, MergedReader

    if domain not in run.memories:
        hint = near_name(domain, run.memories) if run.memories else "its recipe switches memories off."
        raise UsageError(f"--merge {domain}: {run.path} has no such memory; {hint}")
    memory = MemoryFolder(run.memories[domain], domain)
    if memory.adapter_file is None and memory.neurons_file is None:
        raise UsageError(
            f"--merge {domain}: this memory is a KV memory only, which weights cannot hold; export without "
            "--merge, or learn it with memory.lora or memory.neurons."
        )
    spec, masks = run.spec, run.masks
    neurons = load_neurons(memory, spec.num_layers, spec.shape.hidden)
    merged = MergedMemory.of(memory, neurons, spec.arch, MemoryCuts(spec, masks))
    cuts = backbone_slices(spec, masks), zero_rows(spec, masks)
    reader = MergedReader(spec.folder, *cuts, merged, run.repair)
    return MergePlan(replace(run, masks=_with_neurons(masks, neurons)), masks, memory, neurons, reader)


def _with_neurons(masks: Masks, neurons: NeuronMemory) -> Masks:
    """The masks with the restored neurons kept."""
    kept = dict(masks)
    for layer, own in neurons.items():
        keep = np.array(masks[layer, STRUCTURE])
        keep[own.index.numpy()] = True
        kept[layer, STRUCTURE] = keep
    return kept


def tell_what_is_left_out(draft: Draft, plan: MergePlan) -> None:
    """Warn that a KV memory cannot be merged."""
    if plan.memory.kv_file is not None:
        draft.progress.warn(
            f"memory {plan.memory.domain}: its KV half cannot be part of weights and is left out; figures of "
            "the whole memory do not hold for the merged checkpoint. For all of it export without --merge."
        )


def check_merged(draft: Draft, plan: MergePlan, sliced: Sliced) -> tuple[ParityFigures, Merged]:
    """Compare what was written with the masked base and the memory without its KV half.

    In float64, before rounding, both must compute the same. The sum of weights and LoRA is stored in the type
    of the base's weights; what that does to the logits is recorded.

    Args:
        draft: the export, with its backbone written.
        plan: what was merged.
        sliced: the backbone that was written.

    Returns:
        the comparison with golden logits, and the manifest's entry.

    Raises:
        IntegrityError: they differ; nothing is published.
    """
    import torch

    from ...model.loaded import LoadedWeights
    from ...parity.compare import compare, require_same
    from ...parity.probe import Probe, golden

    draft.progress.message("checking parity")
    draft.progress.start("parity", 4, 0)
    run, domain = plan.run, plan.memory.domain
    with draft.timed("parity"):
        exact = Probe(draft.backbone, view=(run.sliced_config, plan.reader))
        tokens = exact.tokens()
        hidden = exact.hidden(tokens, [None])
        draft.progress.advance("parity", 1, {})
        with LoadedWeights(run.spec.folder) as loaded:
            masked = _masked(plan, loaded)
            expected = masked.hidden(tokens, [domain])
            differences = require_same(exact, hidden, masked, expected, [], "nothing was published")
        draft.progress.advance("parity", 2, {})
        stored = Probe(draft.backbone)
        written = stored.hidden(tokens, [None])
        rounding = compare(stored, written, exact, hidden)[0]
        _require_written(draft, sliced, rounding, plan)
        draft.progress.advance("parity", 3, {})
        single = Probe(draft.backbone, dtype=torch.float32)
        noise = compare(stored, written, single, single.hidden(tokens, [None]))[0]
        logits = Golden(tokens=tokens, **golden(stored, written)[0])
    draft.progress.advance("parity", 4, {})
    figures = ParityFigures(summary(len(tokens), differences, dict.fromkeys(differences, noise)), logits)
    return figures, plan.entry(_shown(rounding))


def _masked(plan: MergePlan, loaded: object) -> Probe:
    """The masked base with the memory beside it, without its KV half."""
    from ...model.bundles import load_memory
    from ...parity.probe import Probe

    spec = plan.run.spec
    memory = replace(load_memory(plan.memory, spec.widths, spec.shape.hidden), kv={})
    return Probe(spec.folder, [memory], plan.masks, loaded=loaded, repair=plan.run.repair)  # type: ignore[arg-type]


def _shown(rounding: Difference) -> dict[str, float]:
    return {"max_abs": rounding.max_abs, "kl": rounding.kl}


def _require_written(draft: Draft, sliced: Sliced, rounding: Difference, plan: MergePlan) -> None:
    """Refuse a checkpoint whose tensors, read back, are not the merged ones.

    Raises:
        IntegrityError: they are not.
    """
    from ...parity.compare import TOLERANCE

    if backbone_digest(draft.backbone) != sliced.digest:
        raise IntegrityError(
            f"{draft.backbone}: its weights are not those that were merged; nothing was published. Check the "
            "disk, and export again."
        )
    if plan.memory.adapter_file is None and not rounding.relative <= TOLERANCE:  # nothing was rounded
        raise IntegrityError(
            f"parity: the merged checkpoint, read back, differs by {rounding.max_abs:.3g} from what was "
            f"merged (limit {TOLERANCE:g} of the largest logit); nothing was published. Please report this "
            "with the recipe and the base's config.json."
        )
