"""Deterministic gates: in every step exactly the mask that would be kept, with a learned scale for each unit.

As in Deterministic Differentiable Pruning (Huang et al. 2026, arXiv 2603.08065), training sees what is
deployed, gates are not bounded by 1, and the scale ends in the weights. Where the paper anneals a soft
surrogate of the number of open gates, the budget here holds exactly from the first step on, and scores learn
straight through (Bengio et al. 2013, arXiv 1308.3432): the derivative by a score is that by its gate, open or
shut.

Legend: L layers, U units of a structure in one layer.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..checkpoint.spec import ModelSpec
from ..method.budget import Budget
from ..method.gates import straight_through
from .gating import Gates


class TopKGates(Gates):
    """`log_alpha[gate]`, [L, U], are plain scores; the highest are open, as many as the budget keeps.

    Args:
        points: names of the gates of each structure; one each, for a scale must have one place to end in.
        budget: what is kept.
    """

    def __init__(self, spec: ModelSpec, points: Mapping[str, list[str]], budget: Budget) -> None:
        super().__init__(spec, points, 0.0, 1.0, budget.layers)
        self.budget = budget
        self.scale = nn.ParameterDict(
            {name: torch.ones_like(alpha) for name, alpha in self.log_alpha.items()}
        )

    def sample(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Scale times mask, differentiable in scores and scales; nothing is drawn."""
        masks = self.hard(self.budget)
        return {
            name: self._opened(straight_through(masks[name], alpha) * self.scale[name])
            for name, alpha in self.log_alpha.items()
        }

    def active_gates(self) -> dict[str, Tensor]:
        """Which gates are open: exact."""
        return self.hard(self.budget)

    def fixed(self, budget: Budget) -> dict[str, Tensor]:
        masks = self.hard(budget)
        return {name: self._opened(mask * self.scale[name].detach()) for name, mask in masks.items()}
