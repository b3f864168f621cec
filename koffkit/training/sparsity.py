"""The expected sparsity of the gates, and its target.

Legend: L layers.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..method.budget import Budget
from ..model.gating import Gates


def active_and_target(
    gates: Gates, budget: Budget, local_sparsity: float | None = None
) -> tuple[Tensor, Tensor]:
    """Expected active fractions and their targets, one entry per constraint: for `uniform` every layer of a
    structure, for `ragged` all removable parameters together, and a masked-only structure one a layer. Layers
    without gates count nowhere.

    Args:
        local_sparsity: the paper's s* (its sections 3.3 and A): one constraint for every kind of gate
            instead, its mean active fraction.
    """
    if local_sparsity is not None:
        shares = torch.stack([active[gates.layers].mean() for active in gates.active_gates().values()])
        return shares, torch.full_like(shares, 1 - local_sparsity)
    active, target, together = [], [], []
    total = sum(budget.total_units[name] * budget.params_per_unit[name] for name in budget.removable)
    for name, fraction in gates.active_fraction().items():
        gated = fraction if len(gates.layers) == len(fraction) else fraction[gates.layers]
        if budget.layout == "ragged" and budget.params_per_unit[name]:
            share = budget.total_units[name] * budget.params_per_unit[name] / total
            together.append(gated.mean() * share)
            continue
        active.append(gated)
        target.append(torch.full_like(gated, budget.keep[name] / budget.total_units[name]))
    if budget.layout == "ragged":
        active.append(torch.stack(together).sum().reshape(1))
        removed = budget.target_params / (total * len(gates.layers))
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


def sparsity_figures(gates: Gates | None, budget: Budget, local_sparsity: float | None) -> dict[str, float]:
    """The fraction of all base parameters that the hard mask removes, and the fraction that the gates are now
    expected to remove.

    Args:
        gates: None: they are no longer learned.
        local_sparsity: the target of every kind of gate, if there is one; then their mean share is added.
    """
    figures = {"sparsity": budget.global_sparsity}
    if gates is not None:
        figures["expected_sparsity"] = expected_sparsity(gates, budget)
        if local_sparsity is not None:
            figures["local_sparsity"] = expected_local_sparsity(gates)
    return figures


@torch.no_grad()
def expected_local_sparsity(gates: Gates) -> float:
    """The share of gates that are now expected to be shut, the mean over the kinds of gate."""
    active = [float(values[gates.layers].mean()) for values in gates.active_gates().values()]
    return 1 - sum(active) / len(active)
