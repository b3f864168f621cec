"""Which removed neurons a domain gets back (ours).

Legend: L layers, U neurons of a layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class NeuronSums:
    """Sums over tokens, [L, U] each, of what every neuron does in the unpruned model.

    A neuron's output is its activation a times its column of down; d is the derivative of the log-likelihood
    by the activation.

    Args:
        squares: of a. slopes: of d. products: of a * d. tokens: how many were read.
    """

    squares: Tensor
    slopes: Tensor
    products: Tensor
    tokens: int = 0

    @classmethod
    def zeros(cls, num_layers: int, units: int, device: torch.device) -> NeuronSums:
        squares, slopes, products = torch.zeros(3, num_layers, units, device=device)
        return cls(squares, slopes, products)

    def sensitivity(self) -> Tensor:
        """What removing each neuron is expected to cost, up to a factor, [L, U].

        With labels drawn from the model, the mean of (a d)^2 is twice the KL that removing one neuron causes,
        to second order, and E[a^2] E[d^2] is the same if activation and slope are independent (as in K-FAC,
        arXiv 1503.05671). The first is noisy on few tokens, the second biased; their geometric mean
        is a compromise between the two.
        """
        count = max(self.tokens, 1)
        independent = (self.squares / count) * (self.slopes / count)
        return (independent * (self.products / count)).sqrt()

    def activation(self, columns: Tensor) -> Tensor:
        """Root mean square of each neuron's output, [L, U] (as in Wanda, arXiv 2306.11695).

        Args:
            columns: norms of the columns of down, [L, U].
        """
        return (self.squares / max(self.tokens, 1)).sqrt() * columns


def mixed(scores: Mapping[str, Tensor], own_share: float) -> dict[str, Tensor]:
    """Each domain's scores mixed with the mean of all domains.

    Args:
        scores: [L, U] by domain.
        own_share: weight of the domain's own scores; the mean has the rest, which steadies scores from little
            text.
    """
    mean = torch.stack(list(scores.values())).mean(0)
    return {domain: own_share * score + (1 - own_share) * mean for domain, score in scores.items()}


def choose_neurons(scores: Tensor, removed: Tensor, count: int, layout: str) -> dict[int, Tensor]:
    """The removed neurons with the highest scores.

    Args:
        scores: [L, U].
        removed: which neurons the mask removes, boolean [L, U].
        count: how many to choose, over all layers.
        layout: `uniform`: equally many in every layer; `ragged`: wherever the scores are highest.

    Returns:
        Their places by layer, ascending; layers without any are left out.
    """
    eligible = scores.double().masked_fill(~removed, -torch.inf)
    if layout == "uniform":
        each = count // len(scores)
        chosen = torch.zeros_like(removed).scatter_(1, eligible.topk(each, dim=1).indices, True)
    else:
        flat = torch.zeros(removed.numel(), dtype=torch.bool, device=removed.device)
        flat[eligible.flatten().topk(count).indices] = True
        chosen = flat.view_as(removed)
    return {layer: own.nonzero().flatten() for layer, own in enumerate(chosen) if bool(own.any())}
