"""Whether two probes compute the same: masked == sliced (method, invariant 1), for no memory and for every
memory.

Legend: B rows (one for each condition), T tokens, D hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import IntegrityError
from .probe import Probe

TOLERANCE = 1e-9
"""The largest difference allowed, as a share of the largest |logit|, in float64."""
NO_MEMORY = "none"


@dataclass(frozen=True)
class Difference:
    """The difference between the logits of one row in two probes.

    Args:
        max_abs: the largest |difference|.
        max_logit: the largest |logit| of either.
        kl: KL(first || second), mean over the tokens, in nats.
    """

    max_abs: float
    max_logit: float
    kl: float

    @property
    def relative(self) -> float:
        """The largest |difference| as a share of the largest |logit|."""
        return self.max_abs / self.max_logit if self.max_abs else 0.0


def compare(one: Probe, first: Tensor, other: Probe, second: Tensor) -> list[Difference]:
    """The difference of each row, from the hidden states [B, T, D] of two probes on the same tokens.

    Args:
        one, other: the probes.
        first, second: their hidden states, [B, T, D].
    """
    worst, largest = (
        torch.zeros(len(first), dtype=torch.float64),
        torch.zeros(len(first), dtype=torch.float64),
    )
    # The vocabulary comes in parts: both log partition functions, and the mean of the difference under the
    # first, so far.
    total = [torch.full(first.shape[:2], -torch.inf, dtype=torch.float64) for _ in range(2)]
    mean = torch.zeros(first.shape[:2], dtype=torch.float64)
    for a, b in _side_by_side(one.logits(first), other.logits(second)):
        a, b = a.double(), b.double()
        gap = a - b
        worst = torch.maximum(worst, gap.abs().amax(dim=(1, 2)))
        largest = torch.maximum(largest, torch.maximum(a.abs(), b.abs()).amax(dim=(1, 2)))
        share = a.logsumexp(-1)
        before, total[0] = total[0], torch.logaddexp(total[0], share)
        total[1] = torch.logaddexp(total[1], b.logsumexp(-1))
        mean = mean * (before - total[0]).exp() + (share - total[0]).exp() * (a.softmax(-1) * gap).sum(-1)
    kl = (mean - total[0] + total[1]).mean(-1).clamp_min(0)
    return [Difference(*row) for row in zip(worst.tolist(), largest.tolist(), kl.tolist(), strict=True)]


def _side_by_side(
    one: Iterator[tuple[int, Tensor]], other: Iterator[tuple[int, Tensor]]
) -> Iterator[tuple[Tensor, Tensor]]:
    """The same parts [..., v] of two vocabularies, wherever the pieces that either comes in begin."""
    nothing = 0, torch.empty(0)
    a = b = nothing[1]
    while True:
        a = a if a.shape[-1] else next(one, nothing)[1]
        b = b if b.shape[-1] else next(other, nothing)[1]
        width = min(a.shape[-1], b.shape[-1])
        if not width:
            break
        yield a[..., :width], b[..., :width]
        a, b = a[..., width:], b[..., width:]
    if a.shape[-1] or b.shape[-1]:
        raise IntegrityError("parity: one model has logits for more tokens than the other.")


def require_same(
    sliced: Probe, hidden: Tensor, masked: Probe, expected: Tensor, domains: Sequence[str], then: str
) -> dict[str, Difference]:
    """Refuse a sliced backbone that does not compute what the masked model does.

    Args:
        sliced, masked: the two probes.
        hidden, expected: their hidden states on the same tokens, [B, T, D]: the first row without memory, the
            others with those of `domains`.
        domains: the memories, in the order of the rows.
        then: the consequence of a difference, for the message.

    Returns:
        The differences by condition.

    Raises:
        IntegrityError: a difference is above `TOLERANCE`, or the masked model's states are not finite.
    """
    if not bool(expected.isfinite().all()):
        raise IntegrityError(
            f"{masked.reader.folder}: the hidden states are not finite; a weight is NaN or infinite, "
            "download it again."
        )
    differences = dict(zip([NO_MEMORY, *domains], compare(sliced, hidden, masked, expected), strict=True))
    for condition, value in differences.items():
        if not value.relative <= TOLERANCE:
            raise IntegrityError(
                f"parity: memory {condition}: the sliced backbone differs from the masked model by "
                f"{value.max_abs:.3g}, "
                f"{value.relative:.3g} of the largest logit (limit {TOLERANCE:g}, in float64); {then}. "
                "Please report this with the recipe and the base's config.json."
            )
    return differences
