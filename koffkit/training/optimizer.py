"""The optimiser's parameter groups, each with a learning rate."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..model.student import Student

BETAS = (0.9, 0.999)
# With a long average of squared gradients, the gates would stay where the sparsity hinge pushed them while it
# was active.
GATE_BETAS = (0.9, 0.98)


def parameter_groups(student: Student, *, gates: bool, memories: bool) -> dict[str, dict[str, Any]]:
    """AdamW's groups by name: `lora`, `kv` and `neurons` with `memories`, `gates` with `gates`; without empty
    groups."""
    groups: dict[str, list[nn.Parameter]] = {}
    if student.memories is not None and memories:
        groups["lora"] = list(student.memories.lora_parameters())
        groups["kv"] = list(student.memories.kv_parameters())
        groups["neurons"] = list(student.memories.neuron_parameters())
    if student.gates is not None and gates:
        groups["gates"] = list(student.gates.parameters())
    return {
        name: {"params": params, "name": name, "betas": GATE_BETAS if name == "gates" else BETAS}
        for name, params in groups.items()
        if params
    }
