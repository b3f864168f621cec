"""Least squares for the columns of down: what is left makes up for what is gone (ours).

A layer's MLP should write y; its U neurons have the activations a. After pruning, the kept neurons K and
those that a memory gives back, S, write as much of y as a linear map can on the text that was read. A
memory's own columns can do so for its domain only, the backbone's must do it for all. So the backbone is
fitted to what no memory can fit: everything that the activations of S explain is taken out first.

Legend: D hidden, U neurons of a layer, K kept, S restored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .repair import Means, ridge


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
    means: Mapping[str, Means],
    restored: Mapping[str, Tensor],
    damping: float,
) -> Refit:
    """Fit the columns of backbone and memories together.

    Args:
        weight: of down, [D, U].
        kept: which neurons the backbone keeps, boolean [U].
        means: of activations and of what should be written, by domain.
        restored: places of the neurons that each domain's memory gives back, [S]; may be empty.
        damping: of the ridge, as a share of the median activation.
    """
    weight = weight.double()
    keep = kept.nonzero().flatten()
    parts = {domain: _Part(weight, keep, own, restored[domain], damping) for domain, own in means.items()}
    explained = torch.stack([part.explained for part in parts.values()]).sum(0)
    spread = torch.stack([part.spread for part in parts.values()]).sum(0)
    change = ridge(spread, explained, damping)
    memories = {domain: part.columns(change) for domain, part in parts.items()}
    return Refit(weight[:, keep] + change, memories)


def refit_memory(weight: Tensor, kept: Tensor, means: Means, restored: Tensor, damping: float) -> Tensor:
    """Fit the columns of one memory, [D, S], beside a backbone that stays as it is; arguments are those of
    `refit`, of one domain."""
    part = _Part(weight.double(), kept.nonzero().flatten(), means, restored, damping)
    return part.columns(torch.zeros_like(part.explained))


class _Part:
    """One domain's part of the fit."""

    def __init__(self, weight: Tensor, keep: Tensor, means: Means, restored: Tensor, damping: float) -> None:
        self.weight, self.keep, self.restored = weight, keep, restored
        self.moments, self.damping = means.second, damping
        present = torch.cat([keep, restored])
        # E[(y - what is written) a^T]
        self.missing = means.cross - weight[:, present] @ means.second[present]
        own = self._within(self.missing[:, restored])
        self.explained = self.missing[:, keep] - own @ self._block(restored, keep)
        whole = self._block(keep, keep)
        self.spread = whole - self._within(self._block(keep, restored)) @ self._block(restored, keep)

    def _block(self, rows: Tensor, columns: Tensor) -> Tensor:
        return self.moments[rows][:, columns]

    def _within(self, target: Tensor) -> Tensor:
        """The regression of something on the restored neurons, by its moments with them [.., S]."""
        if not len(self.restored):
            return target
        return ridge(self._block(self.restored, self.restored), target, self.damping)

    def columns(self, change: Tensor) -> Tensor:
        """The restored neurons' columns, once the backbone's have changed by `change` [D, K]."""
        left = self.missing[:, self.restored] - change @ self._block(self.keep, self.restored)
        return self.weight[:, self.restored] + self._within(left)


def whole_weight(shape: torch.Size, keep: Tensor, fitted: Refit, domain: str, restored: Tensor) -> Tensor:
    """Backbone and one memory as a weight [D, U], zero elsewhere, in float64.

    Args:
        shape: [D, U].
        keep: which neurons the backbone keeps, boolean [U].
        fitted: the columns of both.
        domain: whose memory.
        restored: places of its neurons, [S].
    """
    whole = torch.zeros(shape, dtype=torch.float64, device=keep.device)
    whole[:, keep] = fitted.backbone.double()
    whole[:, restored] = fitted.memories[domain].double()
    return whole
