"""The optimiser's parameter groups, each with a learning rate."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from ..model.student import Student
from ..model.top_k_gates import TopKGates

BETAS = (0.9, 0.999)
# With a long average of squared gradients, the gates would stay where the sparsity hinge pushed them while it
# was active.
GATE_BETAS = (0.9, 0.98)
SHARED = ("gates", "scales", "backbone")
"""Groups of what all domains share, which retention text trains, too."""


def parameter_groups(
    student: Student, *, gates: bool, memories: bool, backbone: Iterable[nn.Parameter] = ()
) -> dict[str, dict[str, Any]]:
    """AdamW's groups by name: `lora`, `kv` and `neurons` with `memories`, `gates` (and their `scales`, if
    they have some) with `gates`, `backbone`; without empty groups.

    Args:
        student: with its gates and memories.
        gates: whether gates are trained.
        memories: whether memories are trained.
        backbone: weights of the backbone that are trained.
    """
    groups: dict[str, list[nn.Parameter]] = {"backbone": list(backbone)}
    if student.memories is not None and memories:
        groups["lora"] = list(student.memories.lora_parameters())
        groups["kv"] = list(student.memories.kv_parameters())
        groups["neurons"] = list(student.memories.neuron_parameters())
    if student.gates is not None and gates:
        groups["gates"] = list(student.gates.log_alpha.parameters())
        if isinstance(student.gates, TopKGates):
            groups["scales"] = list(student.gates.scale.parameters())
    return {
        name: {"params": params, "name": name, "betas": GATE_BETAS if name == "gates" else BETAS}
        for name, params in groups.items()
        if params
    }
