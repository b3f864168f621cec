"""LAPE, the entropy of how often a neuron fires in each domain (Tang et al. 2024, arXiv 2402.16438), against
what was pruned (the paper's section 4.5.2 and Table 3).

Legend: L layers, U neurons of a layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

SHARE = 0.15
"""Share of the neurons that the paper calls specific, and general."""
PAPER = {"lift": 1.34, "protection": 0.09}
"""The paper's Table 3, gate_proj of Llama-3.2-3B: .67 and .04 of .50."""
BINS = 20


def lape(firing: Mapping[str, Tensor]) -> Tensor:
    """The entropy, in nats, of each neuron's firing over the domains: low for a neuron of one domain.

    Args:
        firing: how often each neuron fires, as a share of tokens, [L, U] by domain.

    Returns:
        [L, U]; NaN for neurons that never fire.
    """
    rates = torch.stack(list(firing.values())).double()
    share = rates / rates.sum(0, keepdim=True)
    return -torch.xlogy(share, share).sum(0)


def pruned_by_specificity(entropy: Tensor, pruned: Tensor, share: float = SHARE) -> dict[str, Any]:
    """How often specific and general neurons are pruned, over all layers together.

    Args:
        entropy: of `lape`, [L, U]; neurons with NaN are left out.
        pruned: which neurons are gone, boolean [L, U].
        share: share of the neurons at either end.

    Returns:
        `pruned`, `pruned_specific` and `pruned_general` (shares that are gone), `lift` and `protection` (the
        latter two divided by the first), `pruned_by_rank` (from specific to general), `neurons` and `silent`
        (how many were ranked, and how many never fire).
    """
    known = ~entropy.isnan()
    order = entropy[known].argsort(stable=True)
    gone = pruned[known][order].double()
    count = max(1, round(share * len(gone)))
    mean, specific, general = (float(part.mean()) for part in (gone, gone[:count], gone[-count:]))
    return {
        "share": share,
        "neurons": len(gone),
        "silent": int((~known).sum()),
        "pruned": mean,
        "pruned_specific": specific,
        "pruned_general": general,
        "lift": specific / mean if mean else 1.0,
        "protection": general / mean if mean else 1.0,
        "pruned_by_rank": [float(part.mean()) for part in gone.tensor_split(min(BINS, len(gone)))],
        "paper": PAPER,
    }


def rank_correlation(first: Tensor, second: Tensor) -> float:
    """Spearman's rank correlation of two tensors of one shape, where both are numbers; ties are ranked in
    their order."""
    known = ~(first.isnan() | second.isnan())
    ranks = [part[known].argsort(stable=True).argsort().double() for part in (first, second)]
    return float(torch.corrcoef(torch.stack(ranks))[0, 1])
