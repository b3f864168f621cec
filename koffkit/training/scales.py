"""The scales of deterministic gates, moved into what they multiply, so that gates of 0 and 1 compute the
same.

Legend: L layers, U units of a structure in one layer, C channels that a gate multiplies, R LoRA rank.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..arch import Cut
from ..masks.masks import Masks
from ..model.linear import plain_linear, plain_weight
from ..model.student import Student
from ..model.top_k_gates import TopKGates
from ..selectors.base import gate_places


@torch.no_grad()
def folded_scales(student: Student, gates: TopKGates, masks: Masks) -> dict[str, Tensor]:
    """Fold the scales of the units that stay into the LoRA factors in place, and into copies of the base's
    tensors; those are returned, by name. Scales are 1 afterwards.

    Args:
        student: its memories change.
        gates: the gates with their scales.
        masks: the final masks.
    """
    tensors: dict[str, Tensor] = {}
    for place in gate_places(student, gates.scale):
        kept = torch.from_numpy(masks[place.layer, place.gate]).to(place.units.device)
        scale = torch.where(kept, gates.scale[place.gate][place.layer], 1.0)[place.units]
        module: Any = place.module
        name = student.spec.arch.layer(place.layer) + place.point.module
        linear = plain_linear(module)
        weight = tensors.get(f"{name}.weight", plain_weight(linear))
        tensors[f"{name}.weight"] = _scaled(weight, scale, place.point)
        if place.point.side == "out" and linear.bias is not None:
            tensors[f"{name}.bias"] = tensors.get(f"{name}.bias", linear.bias) * scale
        factors = getattr(module, "lora_A" if place.point.side == "in" else "lora_B", {})
        for factor in factors.values():
            factor.weight.copy_(_scaled(factor.weight, scale, place.point))
    for values in gates.scale.values():
        values.fill_(1.0)
    return tensors


def _scaled(matrix: Tensor, scale: Tensor, point: Cut) -> Tensor:
    """A weight or LoRA factor, its columns (side `in`) or rows scaled by [C]."""
    return matrix * (scale if point.side == "in" else scale[:, None]).to(matrix.dtype)
