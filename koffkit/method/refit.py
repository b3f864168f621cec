"""Least squares for the columns of down: what is left makes up for what is gone (ours).

A layer's MLP writes W a, where a are the activations of its U neurons. After pruning, the kept neurons K and
those that a memory gives back, S, write for the missing ones M too, as well as a linear map can on the text
that was read. A memory's own columns can do so for its domain only, the backbone's must do it for all. So the
backbone is fitted to what no memory can fit: everything that the activations of S explain is taken out first.

Legend: D hidden, U neurons of a layer, K kept, S restored, M missing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .repair import ridge


@dataclass(frozen=True)
class Refit:
    """New columns of one layer.

    Args:
        backbone: of the kept neurons, [D, K].
        memories: of the restored neurons by domain, [D, S].
    """

    backbone: Tensor
    memories: Mapping[str, Tensor]


def refit(
    weight: Tensor,
    kept: Tensor,
    moments: Mapping[str, Tensor],
    restored: Mapping[str, Tensor],
    damping: float,
) -> Refit:
    """Fit the columns of backbone and memories together.

    Args:
        weight: of down, [D, U].
        kept: which neurons the backbone keeps, boolean [U].
        moments: E[a a^T] of the unpruned model on each domain's text, [U, U].
        restored: places of the neurons that each domain's memory gives back, [S]; may be empty.
        damping: of the ridge, as a share of the median activation.
    """
    weight = weight.double()
    keep = kept.nonzero().flatten()
    parts = {
        domain: _Part(weight, keep, kept, own.double(), restored[domain], damping)
        for domain, own in moments.items()
    }
    explained = torch.stack([part.explained for part in parts.values()]).sum(0)
    spread = torch.stack([part.spread for part in parts.values()]).sum(0)
    change = ridge(spread, explained, damping)
    memories = {domain: part.columns(change) for domain, part in parts.items()}
    return Refit(weight[:, keep] + change, memories)


class _Part:
    """One domain's part of the fit."""

    def __init__(
        self, weight: Tensor, keep: Tensor, kept: Tensor, moments: Tensor, restored: Tensor, damping: float
    ) -> None:
        missing = ~kept
        missing[restored] = False
        self.weight, self.keep, self.restored = weight, keep, restored
        self.missing, self.moments, self.damping = missing.nonzero().flatten(), moments, damping
        gone = weight[:, self.missing]
        self.explained = gone @ self._between(self.missing, keep)
        self.spread = self._between(keep, keep)

    def _block(self, rows: Tensor, columns: Tensor) -> Tensor:
        return self.moments[rows][:, columns]

    def _between(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Second moments of what the restored neurons do not explain."""
        whole = self._block(rows, columns)
        if not len(self.restored):
            return whole
        own = self._block(self.restored, self.restored)
        return whole - ridge(own, self._block(rows, self.restored), self.damping) @ self._block(
            self.restored, columns
        )

    def columns(self, change: Tensor) -> Tensor:
        """The restored neurons' columns, once the backbone's have changed by `change` [D, K]."""
        columns = self.weight[:, self.restored]
        if not len(self.restored):
            return columns
        left = self.weight[:, self.missing] @ self._block(self.missing, self.restored)
        left = left - change @ self._block(self.keep, self.restored)
        return columns + ridge(self._block(self.restored, self.restored), left, self.damping)


def reconstruction_error(
    weight: Tensor, moments: Tensor, kept: Tensor, backbone: Tensor, restored: Tensor, memory: Tensor
) -> float:
    """E|W a - what backbone and memory write|^2 on the text of `moments`.

    Args:
        weight: [D, U]. moments: [U, U]. kept: boolean [U].
        backbone: columns of the kept neurons, [D, K]; memory: of the restored ones, [D, S].
        restored: places of the latter, [S].
    """
    difference = weight.double().clone()
    difference[:, kept] -= backbone.double()
    difference[:, restored] -= memory.double()
    return float((difference @ moments.double() * difference).sum())
