"""Which removed neurons a domain gets back, and which go if some come back (ours).

Legend: L layers, U neurons of a layer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

ROUNDS = 5
"""From the backbone to the prices of places in memories and back; more change next to nothing."""


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


def scores_for_memories(
    scores: Mapping[str, Tensor],
    general: Tensor | None,
    keep: Callable[[Tensor], Tensor],
    count: int,
    layout: str,
) -> Tensor:
    """Scores [L, U] by which the backbone keeps neurons, if each domain gets some of the others back.

    Wanted are the backbone K and the memories S_d, of given sizes, with the least sum over domains d of the
    scores of what neither has. A place in memory d has a price p_d (`prices`). Without neuron i in the
    backbone, domain d loses its score s_di, or gives up a place for it: so keeping i is worth the sum of
    min(s_di, p_d). Prices follow from the backbone, and the backbone from the prices; a few rounds settle
    both, and the best of them counts.

    Args:
        scores: what a domain loses without each neuron, [L, U] by domain.
        general: the same of text that no memory is for, [L, U]; None: there is none.
        keep: the neurons that scores [L, U] would keep, boolean [L, U].
        count, layout: of a memory's neurons, as for `choose_neurons`.
    """
    own = {domain: table.double() for domain, table in scores.items()}
    rest = [] if general is None else [general.double()]
    worth = torch.stack([*own.values(), *rest]).sum(0)
    tried = []
    for _ in range(ROUNDS):
        removed = ~keep(worth)
        given = [chosen_table(table, removed, count, layout) for table in own.values()]
        lost = [table[removed & ~back].sum() for table, back in zip(own.values(), given, strict=True)]
        tried.append((float(sum(lost) + sum(table[removed].sum() for table in rest)), worth))
        capped = [
            table.minimum(prices(table, removed, back, layout))
            for table, back in zip(own.values(), given, strict=True)
        ]
        worth = torch.stack([*capped, *rest]).sum(0)
    return min(tried, key=lambda found: found[0])[1]


def prices(scores: Tensor, removed: Tensor, given: Tensor, layout: str) -> Tensor:
    """What a place in a domain's memory is worth, [L, 1]: between the lowest score that gets one and the
    highest that gets none; infinite where there are no places.

    Args:
        scores: at least 0, [L, U].
        removed, given: neurons that the mask removes, and those of them that come back, boolean [L, U].
        layout: `uniform`: every layer has places of its own; `ragged`: all have the same.
    """
    lowest = scores.masked_fill(~given, torch.inf).amin(-1, keepdim=True)
    highest = scores.masked_fill(~removed | given, 0).amax(-1, keepdim=True)
    if layout == "ragged":
        lowest, highest = lowest.amin().expand_as(lowest), highest.amax().expand_as(highest)
    return (lowest + highest) / 2


def chosen_table(scores: Tensor, removed: Tensor, count: int, layout: str) -> Tensor:
    """The neurons of `choose_neurons`, boolean [L, U]."""
    given = torch.zeros_like(removed)
    for layer, places in choose_neurons(scores, removed, count, layout).items():
        given[layer, places] = removed[layer, places]
    return given
