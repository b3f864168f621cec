"""What the units that stay can make up for, without training: new weights or biases of the linear modules
that read removed channels, from the moments of the unpruned model's activations.

Legend: F inputs of a linear module, D outputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Moments:
    """Sums over the inputs of a module.

    Args:
        first: [F].
        second: of the outer products, [F, F].
        tokens: how many inputs were added.
    """

    first: Tensor
    second: Tensor
    tokens: int = 0

    @classmethod
    def zeros(cls, width: int, device: torch.device) -> Moments:
        """Of no inputs."""
        return cls(torch.zeros(width, device=device), torch.zeros(width, width, device=device))

    def add(self, inputs: Tensor) -> None:
        """Add inputs [tokens, F]."""
        self.first += inputs.sum(0)
        self.second += inputs.T @ inputs
        self.tokens += len(inputs)

    def means(self) -> tuple[Tensor, Tensor]:
        """E[x] and E[x x^T] in float64."""
        return self.first.double() / self.tokens, self.second.double() / self.tokens


def least_squares(weight: Tensor, kept: Tensor, moments: Moments, damping: float) -> Tensor:
    """A weight whose kept columns also do what the removed ones can be predicted to do: W_kept + W_removed
    C_removed,kept (C_kept,kept + damping * median(diag C_kept,kept) * I)^-1, where C is the second moment of
    the inputs (ridge regression of removed inputs on kept ones; as in ZipLM, Kurtic et al. 2023, arXiv
    2302.04089, for one layer alone).

    Args:
        weight: [D, F].
        kept: boolean [F].
        moments: of the unpruned model's inputs.
        damping: how strongly the regression is held back; above 0.

    Returns:
        [D, F] in float64; removed columns are as they were.
    """
    _, second = moments.means()
    exact = weight.double()
    replaced = exact.clone()
    replaced[:, kept] += ridge(second[kept][:, kept], exact[:, ~kept] @ second[~kept][:, kept], damping)
    return replaced


def ridge(moments: Tensor, target: Tensor, damping: float) -> Tensor:
    """target (C + damping * median(diag C) * I)^-1, the solution [D, F] of a ridge regression.

    Args:
        moments: C, the second moments of what is read, [F, F].
        target: the moments between what is wanted and what is read, [D, F].
        damping: how strongly the regression is held back; above 0.
    """
    strength = damping * moments.diagonal().median().clamp_min(1e-30)
    inner = moments + strength * torch.eye(len(moments), dtype=moments.dtype, device=moments.device)
    solution: Tensor = torch.linalg.solve(inner, target.T).T
    return solution


def mean_bias(weight: Tensor, kept: Tensor, moments: Moments) -> Tensor:
    """What the removed inputs contribute on average, [D] in float64: the bias compensation of FLAP (An et al.
    2024, arXiv 2312.11983)."""
    first, _ = moments.means()
    return weight.double()[:, ~kept] @ first[~kept]


def squared_error(
    weight: Tensor,
    kept: Tensor,
    moments: Moments,
    *,
    replaced: Tensor | None = None,
    bias: Tensor | None = None,
) -> float:
    """E |W x - (W' x_kept + b)|^2: what pruning does to a module's output, after its repair.

    Args:
        weight: the base's, [D, F].
        kept: boolean [F].
        moments: of the inputs that the error is measured on.
        replaced: W' [D, F]; None: the base's.
        bias: b [D]; None: 0.
    """
    first, second = moments.means()
    off = weight.double().clone()
    off[:, kept] = 0 if replaced is None else off[:, kept] - replaced.double()[:, kept]
    error = ((off @ second) * off).sum()
    if bias is not None:
        error = error - 2 * (bias.double() @ (off @ first)) + bias.double().square().sum()
    return float(error)
