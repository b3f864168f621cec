"""How alike two models represent the same texts (the paper's section 4.5.3 and appendix B).

Legend: N texts, D hidden.
"""

from __future__ import annotations

import torch
from torch import Tensor


def linear_cka(first: Tensor, second: Tensor) -> float:
    """Linear centred kernel alignment (Kornblith et al. 2019, arXiv 1905.00414): 1 for representations that
    differ by rotation and scale only.

    Args:
        first, second: [N, D] each; D may differ.
    """
    x, y = (part.double() - part.double().mean(0) for part in (first, second))
    shared = torch.linalg.matrix_norm(x.T @ y) ** 2
    return float(shared / (torch.linalg.matrix_norm(x.T @ x) * torch.linalg.matrix_norm(y.T @ y)))


def knn_overlap(first: Tensor, second: Tensor, neighbours: int) -> float:
    """The mean share of a text's nearest neighbours, by cosine, that both representations agree on.

    Args:
        first, second: [N, D] each.
        neighbours: how many of each text are compared, fewer than N.
    """
    near = [_neighbours(part, neighbours) for part in (first, second)]
    both = (near[0].unsqueeze(2) == near[1].unsqueeze(1)).any(2)
    return float(both.double().mean())


def _neighbours(points: Tensor, count: int) -> Tensor:
    unit = torch.nn.functional.normalize(points.double(), dim=-1)
    closeness = unit @ unit.T
    closeness.fill_diagonal_(-torch.inf)
    return closeness.topk(count, dim=-1).indices


def centroid_cosine(first: Tensor, second: Tensor, labels: Tensor) -> float:
    """The mean cosine between a domain's mean in one representation and in the other.

    Args:
        first, second: [N, D] each.
        labels: the domain of every text, [N].
    """
    cosines = []
    for label in sorted(set(labels.tolist())):
        one, other = (part[labels == label].double().mean(0) for part in (first, second))
        cosines.append(torch.nn.functional.cosine_similarity(one, other, dim=0))
    return float(torch.stack(cosines).mean())
