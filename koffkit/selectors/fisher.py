"""Selector `fisher`: units whose removal moves the model's own predictions least, to second order, go first.

Legend: B batch, T tokens, N = B * T, C channels that a gate multiplies, U units, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from ..method.likelihood import projected
from ..method.losses.base import Objective
from ..method.losses.chunked import training_loss
from .base import Calibration, GatePlace, Saliencies, Selector, gate_places, watching


class Fisher(Selector):
    """The expected square of d log p(labels) / d gate, one gate for each unit and token, labels drawn from
    the model itself: the diagonal of the gates' Fisher information. To second order it is twice the KL,
    summed over later tokens, that removing the unit at one token costs (LeCun et al. 1989, Optimal Brain
    Damage; Theis et al. 2018, arXiv 1801.05787, with the text's own labels instead). A gate's derivative is
    activation times gradient, summed over the unit's channels. Across layers and structures it is compared
    per parameter."""

    any_sparsity = True
    additive = True

    def saliency(self, text: Calibration) -> Saliencies:
        total = text.zeros()

        def add(place: GatePlace, values: Tensor, slopes: Tensor) -> None:
            total[place.gate][place.layer].add_(squared_products(place, values, slopes))

        tokens = watch_slopes(text, add)
        return {name: sums / max(1, tokens) for name, sums in total.items()}


def watch_slopes(text: Calibration, add: Callable[[GatePlace, Tensor, Tensor], None]) -> int:
    """Show the unpruned model its text, with labels drawn from itself; returns the number of tokens.

    Args:
        text: what is shown.
        add: called for every gate, layer and batch with what the gate multiplies, [N, C], and the derivative
            of log p(labels) by it, [N, C].
    """
    student, sizes = text.student, text.sizes
    device = student.head.device
    ones = {name: torch.ones(size, device=device, requires_grad=True) for name, size in sizes.items()}
    generator = torch.Generator(device).manual_seed(text.seed)
    objective = Objective.named("cross_entropy")
    tokens = 0

    def receive(place: GatePlace, values: Tensor) -> None:
        if values.requires_grad:
            hook = partial(_with_slope, place, values.detach(), add)
            values.register_hook(hook)  # type: ignore[no-untyped-call]

    with watching(gate_places(student, sizes), receive):
        for batch in text.batches():
            with text.autocast():
                hidden = student(batch.ids, ones, positions=batch.positions).flatten(0, 1)
                labels = _drawn(hidden.detach(), student.head, text.chunk_tokens, generator)
                loss, _, _ = training_loss(hidden, None, labels, student.head, objective, text.chunk_tokens)
            torch.autograd.grad(loss * batch.ids.numel(), list(ones.values()))
            tokens += batch.ids.numel()
    return tokens


def _with_slope(
    place: GatePlace, values: Tensor, add: Callable[[GatePlace, Tensor, Tensor], None], slopes: Tensor
) -> None:
    add(place, values.float().flatten(0, -2), slopes.float().flatten(0, -2))


def squared_products(place: GatePlace, values: Tensor, slopes: Tensor) -> Tensor:
    """(activation * slope)^2, the product summed over a unit's channels, summed over tokens: [U].

    Args:
        values, slopes: [N, C].
    """
    products = values * slopes
    units = int(place.units.max()) + 1
    if len(place.units) != units:  # several channels of a unit
        products = products.new_zeros(len(products), units).index_add_(1, place.units, products)
    return products.square().sum(0)


@torch.no_grad()
def _drawn(hidden: Tensor, head: Tensor, chunk: int, generator: torch.Generator) -> Tensor:
    """A label for each of N tokens, drawn from the model's own distribution."""
    logits = projected(hidden, head)
    parts = [
        torch.multinomial(logits(slice(first, first + chunk)).float().softmax(-1), 1, generator=generator)
        for first in range(0, len(hidden), chunk)
    ]
    return torch.cat(parts).flatten()


SELECTOR = Fisher()
