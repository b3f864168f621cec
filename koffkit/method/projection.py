"""From learned scores to the final mask: the projection onto the exact budget (method, section 3, "ours").

Legend: L layers, U units of a structure in one layer, S steps of a layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import torch
from torch import Tensor

from .budget import Budget


def project(scores: Mapping[str, Tensor], budget: Budget, heads: Mapping[str, int]) -> dict[str, Tensor]:
    """Boolean masks [L, U] by structure, True = keep: the units with the highest scores.

    In `uniform` every layer keeps `budget.keep`. In `ragged` the steps with the lowest scores go first, in
    any layer that has gates, until the target is met; a step that would overshoot by more than a finer one is
    skipped. KV heads of one layer keep equal counts.

    Args:
        scores: [L, U] by structure. heads: KV heads that a structure's units are split over (1: not split).
    """
    keep = {
        name: [
            budget.keep[name] if budget.has_gates(layer) else budget.total_units[name]
            for layer in range(len(table))
        ]
        for name, table in scores.items()
    }
    if budget.layout == "ragged":
        keep |= _ragged_counts({name: scores[name] for name in budget.removable}, budget, heads)
    return {name: _mask(table, keep[name], heads[name]) for name, table in scores.items()}


def _mask(scores: Tensor, counts: list[int], heads: int) -> Tensor:
    by_head = scores.view(len(scores), heads, -1)
    rows = [top_units(layer, count // heads) for layer, count in zip(by_head, counts, strict=True)]
    return torch.stack(rows).view(scores.shape)


def top_units(scores: Tensor, count: int) -> Tensor:
    """Boolean mask over the last dimension: True for the `count` highest scores; ties go to the lower
    index."""
    order = torch.argsort(scores, dim=-1, descending=True, stable=True)
    keep = torch.zeros_like(scores, dtype=torch.bool)
    return keep.scatter(-1, order[..., :count], True)


def _ragged_counts(
    scores: Mapping[str, Tensor], budget: Budget, heads: Mapping[str, int]
) -> dict[str, list[int]]:
    steps = []
    for name, table in scores.items():
        for layer, (values, sizes) in enumerate(
            _steps(row, heads[name], budget.step_units[name]) for row in table
        ):
            if not budget.has_gates(layer):
                continue
            steps += [(value, name, layer, size) for value, size in zip(values, sizes, strict=True)]
    finest = min(budget.params_per_unit[name] * budget.step_units[name] for name in scores)
    keep = {name: [budget.total_units[name]] * len(table) for name, table in scores.items()}
    rest = budget.target_params
    passed_over = []
    for _, name, layer, size in sorted(steps):
        cost = size * budget.params_per_unit[name]
        if rest <= 0:
            break
        if cost > max(rest, finest):
            passed_over.append((cost, name, layer, size))
            continue
        keep[name][layer] -= size
        rest -= cost
    for cost, name, layer, size in sorted(passed_over):  # only when nothing finer is left
        if rest > 0:
            keep[name][layer] -= size
            rest -= cost
    return keep


def _steps(scores: Tensor, heads: int, step: int) -> tuple[list[float], list[int]]:
    """Mean score and size of each step that a layer can lose, lowest first; the last step stays.

    The first step also takes the units in excess of a multiple of `step`.
    """
    ranked = scores.view(heads, -1).sort(-1).values  # the lowest unit of every head goes in the same step
    per_head, each = ranked.shape[-1], step // heads
    bounds = [0, *range(per_head % each or each, per_head - each + 1, each)]
    parts = [(low, high) for low, high in pairwise(bounds) if high > low]
    values = [float(ranked[:, low:high].mean()) for low, high in parts]
    # A mean over few units can be below that of the step before; a layer loses its steps in order.
    for index in range(1, len(values)):
        values[index] = max(values[index], values[index - 1])
    return values, [(high - low) * heads for low, high in parts]
