"""Hinge on the expected active fraction, with a weight that scales itself (method, section 3)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

GROWTH = 1000.0
LEAST = 1e-3


@dataclass
class HingeController:
    """`lambda * mean_over_layers [active - target]_+`, lambda growing while the target is not met.

    Args:
        weight: lambda now.
        rise_steps: steps in which lambda may grow a thousandfold. It grows at that rate while some layer is above its target by
            more than `tolerance`, and shrinks at the same rate while every layer is below: a lambda that stays at its peak throws
            the gates far past the target at the next touch.
    """

    weight: float
    rise_steps: int
    tolerance: float = 0.002

    def penalty(self, active: Tensor, target: Tensor) -> Tensor:
        """Args: expected active fraction and its target, each [layers]. Returns a scalar."""
        return self.weight * torch.relu(active - target).mean()

    def update(self, active: Tensor, target: Tensor) -> None:
        """Call once a step, after the gates moved."""
        if bool(((active - target) > self.tolerance).any()):
            self.weight *= self._rate
        elif bool((active < target).all()):
            self.weight = max(self.weight / self._rate, LEAST)

    @property
    def _rate(self) -> float:
        return math.exp(math.log(GROWTH) / max(1, self.rise_steps))
