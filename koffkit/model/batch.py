"""What a model reads at one time.

Legend: B batch, T sequence length.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class Batch(NamedTuple):
    """Sequences of packed documents.

    Args:
        ids: token ids [B, T].
        loss_mask: which of them the loss counts, boolean [B, T]; None: all.
        positions: position ids [B, T] that begin at 0 with every document. transformers takes a restart for
            the beginning of another text, which attends to nothing before it. None: they run through, and
            tokens attend across documents.
        numbers: which sequences these are, [B], of text that is cut at the same places in every epoch. None:
            the cuts move.
    """

    ids: Tensor
    loss_mask: Tensor | None = None
    positions: Tensor | None = None
    numbers: Tensor | None = None

    def rows(self, rows: slice) -> Batch:
        """Some of the sequences."""
        return Batch(*(None if part is None else part[rows] for part in self))  # type: ignore[arg-type]

    def scored(self, *, labels: bool) -> Tensor:
        """The positions that a loss counts, boolean [B, T].

        Args:
            labels: whether the loss compares with the token that follows, which the last position lacks.
        """
        import torch

        scored = torch.ones_like(self.ids, dtype=torch.bool)
        if labels or self.loss_mask is not None:
            counted = scored if self.loss_mask is None else self.loss_mask
            scored = torch.nn.functional.pad(counted[:, 1:], (0, 1), value=False)
        return scored  # each position predicts the token that follows it

    def to(self, device: torch.device | str) -> Batch:
        return Batch(*(None if part is None else part.to(device) for part in self))  # type: ignore[arg-type]
