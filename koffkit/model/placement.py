"""Which layers carry memory, learned under a budget (the paper's open question; ours).

One Hard Concrete gate a layer scales that layer's LoRA update and the attention its KV memory gets, for all domains alike. After
`learn_masks` the layers with the highest scores stay, as many as the budget allows.

Legend: L layers.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..method import gates
from ..method.projection import top_units


class Placement(nn.Module):
    """Args: count: layers that may carry memory in the end."""

    def __init__(self, num_layers: int, count: int, open_probability: float, temperature: float) -> None:
        super().__init__()
        self.count, self.temperature = count, temperature
        self.log_alpha = nn.Parameter(torch.full((num_layers,), gates.initial_log_alpha(open_probability, temperature)))

    def sample(self, generator: torch.Generator) -> Tensor:
        """Relaxed gates, [L]."""
        return gates.sample(self.log_alpha, self.temperature, generator)

    def active_fraction(self) -> Tensor:
        """Expected share of layers with memory, [1]."""
        return gates.active_probability(self.log_alpha, self.temperature).mean().reshape(1)

    def hard(self) -> Tensor:
        """The layers that stay, [L] of 0 and 1."""
        return top_units(self.log_alpha.detach(), self.count).float()

    def layers(self) -> list[int]:
        return [index for index, kept in enumerate(self.hard().tolist()) if kept]
