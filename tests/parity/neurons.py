"""The part of the conformance matrix that is about restored neurons: every architecture and layout, neurons
alone and beside everything else that can be removed and learned."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from koffkit.exporters import export
from torch import Tensor
from transformers import AutoModelForCausalLM

from koffkit import KoffModel
from koffkit.arch import architecture, supported
from koffkit.model.kv_attention import set_kv_memory
from koffkit.model.neuron_memory import set_neuron_memory
from koffkit.training.context import Context

from .conformance import IDS, Case

COLUMN = "restored neurons"
ROWS = ["south", None, "north", "south"]


def neuron_cases() -> Iterator[Case]:
    for family in supported():
        for layout in ("uniform", "ragged"):
            for structure in ("mlp_neuron", "paper"):
                case = Case(family, structure, layout, layout == "ragged", neurons=True)
                yield Case(family, "mlp_output", layout, True, neurons=True) if case.refused else case
        yield Case(family, "neurons+groups", "uniform", False, "least_squares", neurons=True)
        if "mlp.down_proj" in architecture(family).biases:
            yield Case(family, "mlp_neuron", "uniform", True, "bias", neurons=True)


@torch.no_grad()
def masked(
    context: Context, domain: str | None, *, kv: bool = True, lora: bool = True, ids: Tensor = IDS
) -> Tensor:
    """Logits of the masked base with the memory of a domain, less some of its halves."""
    student, memories = context.student, context.student.memories
    assert memories is not None
    memories.attach(domain)
    if not kv:
        set_kv_memory(student.model, None)
    if not lora:
        memories._enable(False)
    student._values = context.masks
    try:
        logits: Tensor = student.model(input_ids=ids, use_cache=False).logits
        return logits
    finally:
        student._values = None
        memories.attach(None)


@torch.no_grad()
def with_open_gates(context: Context, domain: str) -> Tensor:
    """Logits of the base under a mask that keeps the restored neurons, too, without any memory."""
    student, memories = context.student, context.student.memories
    assert memories is not None and context.masks is not None
    gates = context.masks["mlp_neuron"].clone()
    for layer, own in memories.neurons[memories.slot(domain)].items():
        assert not bool(gates[layer, own.index].any()), "a restored neuron was not removed"
        gates[layer, own.index] = 1
    memories.attach(None)
    student._values = context.masks | {"mlp_neuron": gates}
    try:
        logits: Tensor = student.model(input_ids=IDS, use_cache=False).logits
        return logits
    finally:
        student._values = None


@torch.no_grad()
def neurons_alone(root: Path, domain: str) -> Tensor:
    """Logits of the export with the neurons of a memory and nothing else of it."""
    model = KoffModel.from_pretrained(root / "out", memories=[], dtype=torch.float32)
    bundle = KoffModel.from_pretrained(root / "out", memories=[domain])
    set_neuron_memory(model.model, bundle.store._loaded[domain].neurons)
    logits: Tensor = model.model(input_ids=IDS, use_cache=False).logits
    return logits


@torch.no_grad()
def merged(root: Path, domain: str) -> Tensor:
    """Logits of the dense checkpoint of backbone and memory."""
    out = root / f"merged-{domain}"
    export(root / "run", out, options={"merge": domain})
    model = AutoModelForCausalLM.from_pretrained(out / "backbone", dtype=torch.float32).eval()
    logits: Tensor = model(input_ids=IDS, use_cache=False).logits
    return logits


def neuron_differences(context: Context, root: Path) -> dict[str, float]:
    """max |logit difference| by condition."""
    exported = KoffModel.from_pretrained(root / "out", dtype=torch.float32)
    pairs = {
        "bare": (exported.logits(IDS, None), masked(context, None)),
        "memory": (exported.logits(IDS, "north"), masked(context, "north")),
        "gates open": (neurons_alone(root, "north"), with_open_gates(context, "north")),
        "merged": (merged(root, "south"), masked(context, "south", kv=False)),
    }
    ids = torch.cat([IDS, IDS + 7])
    mixed = exported.logits(ids, ROWS)
    for row, name in enumerate(ROWS):
        alone = masked(context, name, ids=ids[row : row + 1])
        pairs[f"row {row}"] = (mixed[row : row + 1], alone)
    return {name: (one - other).abs().max().item() for name, (one, other) in pairs.items()}


__all__ = ["COLUMN", "masked", "neuron_cases", "neuron_differences", "with_open_gates"]
