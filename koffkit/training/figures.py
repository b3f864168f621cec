"""Figures of a step beside its loss, for `metrics.jsonl` and the trackers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..parallel import ranks
from .profile import peak_memory

LOW_MASS = 0.9
"""Teacher's probability mass on its top tokens, below which the loss hardly constrains the rest."""


def gradients(groups: Mapping[str, Mapping[str, Any]]) -> list[Tensor]:
    """The gradients of all trainable parameters that have one."""
    parameters = [parameter for group in groups.values() for parameter in group["params"]]
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


def gradient_figures(groups: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """`gradient_norm`: the Euclidean norm of the gradients of all trainable parameters, before the update."""
    found = gradients(groups)
    if not found:
        return {}
    norms = torch.stack([gradient.detach().float().norm() for gradient in found])
    return {"gradient_norm": float(norms.norm())}


def peak_memory_figures(device: torch.device) -> dict[str, Any]:
    """`peak_memory` in bytes, of the process that took most; of several also `peak_memory_of_processes`."""
    peaks = ranks.collected(peak_memory(device))
    return {"peak_memory": max(peaks)} | ({"peak_memory_of_processes": peaks} if len(peaks) > 1 else {})


def low_mass(covered: float, top_k: Any) -> str:
    """The warning of `LOW_MASS`.

    Args:
        covered: the teacher's mass on the tokens compared.
        top_k: as the recipe has it.
    """
    remedy = "Raise distill.top_k, or give it by probability: {top_p: 0.98}."
    if not isinstance(top_k, int):
        remedy = "Raise distill.top_k.top_p or distill.top_k.max."
    return (
        f"the teacher's top-k tokens have {covered:.0%} of its probability (below {LOW_MASS:.0%}); the loss "
        f"hardly constrains the rest. {remedy}"
    )


def rates(optimizer: torch.optim.Optimizer | None) -> dict[str, float]:
    """`lr_lora`, `lr_kv`, `lr_gates`: the learning rates of the last update."""
    groups = [] if optimizer is None else optimizer.param_groups
    return {f"lr_{group['name']}": float(group["lr"]) for group in groups}
