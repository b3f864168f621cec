"""Figures of a step beside its loss, for `metrics.jsonl` and the trackers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch


def gradient_figures(groups: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """`gradient_norm`: the Euclidean norm of the gradients of all trainable parameters, before the update."""
    gradients = [
        parameter.grad
        for group in groups.values()
        for parameter in group["params"]
        if parameter.grad is not None
    ]
    if not gradients:
        return {}
    norms = torch.stack([gradient.detach().float().norm() for gradient in gradients])
    return {"gradient_norm": float(norms.norm())}


def rates(optimizer: torch.optim.Optimizer | None) -> dict[str, float]:
    """`lr_lora`, `lr_kv`, `lr_gates`: the learning rates of the last update."""
    groups = [] if optimizer is None else optimizer.param_groups
    return {f"lr_{group['name']}": float(group["lr"]) for group in groups}
