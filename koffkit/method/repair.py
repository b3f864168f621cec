"""What the units that stay can make up for, without training: new weights or biases of the linear modules
that read removed channels, from moments of what they read and of what they should write.

Legend: F inputs of a linear module, D outputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass(frozen=True)
class Means:
    """Means over tokens, in float64; x is what a module reads, removed channels included, and y what it
    should write.

    Args:
        inputs: E[x], [F].
        second: E[x x^T], [F, F].
        outputs: E[y], [D].
        cross: E[y x^T], [D, F].
        square: E|y|^2, a scalar.
    """

    inputs: Tensor
    second: Tensor
    outputs: Tensor
    cross: Tensor
    square: Tensor

    def times(self, factor: float) -> Means:
        """All means times a factor."""
        return Means(*(getattr(self, part.name) * factor for part in fields(self)))

    def without(self, bias: Tensor | None) -> Means:
        """The same of y - b, for the bias b [D] that a module adds."""
        if bias is None:
            return self
        bias = bias.double()
        square = self.square - 2 * bias @ self.outputs + bias @ bias
        cross = self.cross - bias[:, None] * self.inputs
        return Means(self.inputs, self.second, self.outputs - bias, cross, square)

    def plus(self, other: Means) -> Means:
        """The sum of all means."""
        return Means(*(getattr(self, part.name) + getattr(other, part.name) for part in fields(self)))


class Moments:
    """Sums over the tokens of a text; see `Means`.

    Args:
        width: F. outputs: D.
    """

    def __init__(self, width: int, outputs: int, device: torch.device) -> None:
        self.sums = Means(
            torch.zeros(width, device=device),
            torch.zeros(width, width, device=device),
            torch.zeros(outputs, device=device),
            torch.zeros(outputs, width, device=device),
            torch.zeros((), dtype=torch.float64, device=device),
        )
        self.tokens = 0

    def add(self, inputs: Tensor, outputs: Tensor) -> None:
        """Add tokens: what is read, [tokens, F], and what should be written, [tokens, D]."""
        self.sums.inputs.add_(inputs.sum(0))
        self.sums.second.addmm_(inputs.T, inputs)
        self.sums.outputs.add_(outputs.sum(0))
        self.sums.cross.addmm_(outputs.T, inputs)
        self.sums.square.add_(outputs.double().square().sum())
        self.tokens += len(inputs)

    def means(self) -> Means:
        """The means over all tokens."""
        return Means(
            *(getattr(self.sums, part.name).double() / max(1, self.tokens) for part in fields(self.sums))
        )


def mixed_means(means: Mapping[str, Means], own_share: float) -> dict[str, Means]:
    """Each text's means mixed with those of all.

    Args:
        means: by the name of the text.
        own_share: weight of a text's own; the mean of all has the rest.
    """
    total = None
    for own in means.values():
        total = own if total is None else total.plus(own)
    if total is None:
        return {}
    rest = total.times((1 - own_share) / len(means))
    return {name: own.times(own_share).plus(rest) for name, own in means.items()}


def least_squares(weight: Tensor, kept: Tensor, means: Means, damping: float) -> Tensor:
    """A weight whose kept columns write, as well as a linear map can, what the module should write: W_kept +
    E[(y - W_kept x_kept) x_kept^T] (C + damping * median(diag C) * I)^-1, where C = E[x_kept x_kept^T]. With
    y = W x that is the regression of removed inputs on kept ones (as in ZipLM, Kurtic et al. 2023, arXiv
    2302.04089, for one layer alone).

    Args:
        weight: [D, F].
        kept: boolean [F].
        means: of what is read and should be written.
        damping: how strongly the regression is held back; above 0.

    Returns:
        [D, F] in float64; removed columns are as they were.
    """
    exact = weight.double()
    replaced = exact.clone()
    spread = means.second[kept][:, kept]
    replaced[:, kept] += ridge(spread, means.cross[:, kept] - exact[:, kept] @ spread, damping)
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


def mean_bias(weight: Tensor, kept: Tensor, means: Means) -> Tensor:
    """What is missing on average when kept inputs alone are read, [D] in float64: the bias compensation of
    FLAP (An et al. 2024, arXiv 2312.11983)."""
    return means.outputs - weight.double()[:, kept] @ means.inputs[kept]


def output_error(weight: Tensor, means: Means, bias: Tensor | None = None) -> float:
    """E|y - (W x + b)|^2: how far a module is from what it should write.

    Args:
        weight: W [D, F]; columns of what is not read are zero.
        means: of the text that the error is measured on.
        bias: b [D]; None: 0.
    """
    weight = weight.double()
    error = means.square - 2 * (weight * means.cross).sum() + ((weight @ means.second) * weight).sum()
    if bias is not None:
        bias = bias.double()
        error = error + bias.square().sum() + 2 * bias @ (weight @ means.inputs - means.outputs)
    return float(error)
