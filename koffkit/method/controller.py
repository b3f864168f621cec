"""Hinge on the expected active fraction, with a weight that scales itself (method, section 3)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

GROWTH = 1000.0


@dataclass
class HingeController:
    """`lambda * mean_over_layers [active - target]_+`, lambda growing while the target is not met.

    Args:
        weight: lambda now.
        rise_steps: steps in which lambda may grow a thousandfold; it grows in steps of that rate only while some layer
            is above its target by more than `tolerance`.
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
            self.weight *= math.exp(math.log(GROWTH) / max(1, self.rise_steps))
