"""The expected sparsity of the gates, and its target.

Legend: L layers.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..method.budget import Budget
from ..model.gating import Gates


def active_and_target(gates: Gates, budget: Budget, num_layers: int) -> tuple[Tensor, Tensor]:
    """Expected active fractions and their targets, one entry per constraint: for `uniform` every layer of a
    structure, for `ragged` all removable parameters together, and a masked-only structure one.

    Args:
        gates: their `log_alpha` is [L, U] by structure.
        budget: what is to stay.
        num_layers: L.
    """
    active, target = [], []
    total = sum(budget.total_units[name] * budget.params_per_unit[name] for name in budget.removable)
    for name, fraction in gates.active_fraction().items():
        if budget.layout == "ragged" and budget.params_per_unit[name]:
            active.append(fraction.mean() * (budget.total_units[name] * budget.params_per_unit[name] / total))
            continue
        active.append(fraction)
        target.append(torch.full_like(fraction, budget.keep[name] / budget.total_units[name]))
    if budget.layout == "ragged":
        together = [part for part in active if part.dim() == 0]
        active = [part for part in active if part.dim()] + [torch.stack(together).sum().reshape(1)]
        removed = budget.target_params / (total * num_layers)
        target.append(torch.full_like(active[-1], 1 - removed))
    return torch.cat(active), torch.cat(target)


@torch.no_grad()
def expected_sparsity(gates: Gates, budget: Budget) -> float:
    """The fraction of all base parameters that the gates are now expected to remove."""
    removed = sum(
        float((1 - fraction).sum()) * budget.total_units[name] * budget.params_per_unit[name]
        for name, fraction in gates.active_fraction().items()
    )
    return removed / budget.base_params
