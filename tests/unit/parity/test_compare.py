"""Two probes are compared over the whole vocabulary, whatever pieces either reads it in."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from koffkit.errors import IntegrityError
from koffkit.parity.compare import Difference, compare


class InPieces:
    """Logits of its own, a few tokens of the vocabulary at a time."""

    def __init__(self, logits: Tensor, *widths: int) -> None:
        self.values, self.widths = logits, widths

    def logits(self, hidden: Tensor) -> Iterator[tuple[int, Tensor]]:
        first = 0
        for width in self.widths:
            yield first, self.values[..., first : first + width]
            first += width


def compared(one: InPieces, other: InPieces) -> list[Difference]:
    hidden = torch.zeros(*one.values.shape[:2], 4)
    return compare(cast(Any, one), hidden, cast(Any, other), hidden)


@pytest.fixture
def logits() -> tuple[Tensor, Tensor]:
    """[B, T, V] in float64, of two models."""
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(2, 3, 23, generator=generator, dtype=torch.float64) * 5
    return first, first + torch.randn(first.shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize(
    "pieces", [((23,), (23,)), ((10, 10, 3), (10, 10, 3)), ((7, 3, 7, 3, 3), (8, 8, 7)), ((23,), (1,) * 23)]
)
def test_the_pieces_do_not_matter(
    logits: tuple[Tensor, Tensor], pieces: tuple[tuple[int, ...], tuple[int, ...]]
) -> None:
    first, second = logits
    found = compared(InPieces(first, *pieces[0]), InPieces(second, *pieces[1]))
    logs = [values.log_softmax(-1) for values in logits]
    kl = (logs[0].exp() * (logs[0] - logs[1])).sum(-1).mean(-1)
    for row, difference in enumerate(found):
        assert difference.max_abs == float((first - second)[row].abs().max())
        assert difference.max_logit == float(torch.stack(logits)[:, row].abs().max())
        assert difference.kl == pytest.approx(float(kl[row]), rel=1e-12)


def test_vocabularies_of_two_sizes_are_refused(logits: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(IntegrityError, match="logits for more tokens than the other"):
        compared(InPieces(logits[0], 10, 13), InPieces(logits[1], 10, 12))
