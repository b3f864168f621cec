"""Second moments of the MLPs' activations in the unpruned model, for least squares.

Legend: U neurons of a layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..model.neuron_memory import mlp_modules
from .context import Context, watched

AT_ONCE = 4 << 30
"""Bytes of moments that exist at one time; of more layers the text is read again."""
CHECKED = 4
"""Every so many batches one is kept out of the fit, to check it."""


@dataclass(frozen=True)
class LayerMoments:
    """E[a a^T] of one layer by domain, [U, U] each.

    Args:
        fit: on the text that columns are fitted to.
        check: on other text, to see whether the fit holds there.
    """

    layer: int
    fit: Mapping[str, Tensor]
    check: Mapping[str, Tensor]


def layer_moments(context: Context, label: str, batches: int, batch_size: int) -> Iterator[LayerMoments]:
    """The moments of every layer in turn.

    Args:
        context: see `Context`.
        label: the work's name, for progress.
        batches: batches of training text of each domain; a quarter of them only check.
        batch_size: sequences in a batch.

    Raises:
        Interrupted: the user asked to stop.
    """
    shape, domains = context.student.spec.shape, context.corpus.domains
    each = max(1, AT_ONCE // (8 * len(domains) * shape.intermediate**2))
    for first in range(0, shape.num_layers, each):
        layers = range(first, min(first + each, shape.num_layers))
        sums = _Sums(layers, domains, shape.intermediate, context.accelerator.device)
        _read(context, f"{label} (layers {layers[0]} to {layers[-1]})", sums, batches, batch_size)
        for layer in layers:
            yield LayerMoments(layer, *(sums.means(layer, kind) for kind in (False, True)))


class _Sums:
    """Sums of a a^T over tokens, by layer, domain and purpose."""

    def __init__(self, layers: range, domains: list[str], units: int, device: torch.device) -> None:
        self.layers, self.domains = layers, domains
        self.sums = torch.zeros(len(layers), len(domains), 2, units, units, device=device)
        self.tokens = torch.zeros(len(domains), 2, device=device)

    def means(self, layer: int, check: bool) -> dict[str, Tensor]:
        place, kind = layer - self.layers[0], int(check)
        return {
            domain: self.sums[place, index, kind] / self.tokens[index, kind].clamp_min(1)
            for index, domain in enumerate(self.domains)
        }


@torch.no_grad()
def _read(context: Context, label: str, sums: _Sums, batches: int, batch_size: int) -> None:
    recipe, unpruned = context.loaded.recipe, context.teacher or context.student
    jobs = [(index, visit) for index in range(len(sums.domains)) for visit in range(batches)]
    place = [0, 0]

    def add(layer: int, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        values = inputs[0].float().flatten(0, -2)
        sums.sums[layer - sums.layers[0], place[0], place[1]].addmm_(values.T, values)

    handles = [
        mlp.down_proj.register_forward_pre_hook(partial(add, layer))
        for layer, mlp in mlp_modules(unpruned.model)
        if layer in sums.layers
    ]
    try:
        for index, visit in watched(label, jobs, context):
            place[:] = index, int(batches > 1 and visit % CHECKED == CHECKED - 1)
            stream = context.corpus.train[sums.domains[index]]
            batch = stream.batch(visit, batch_size, recipe.sequence_length, recipe.seed)
            batch = batch.to(context.accelerator.device)
            with context.accelerator.autocast():
                unpruned(batch.ids, positions=batch.positions)
            sums.tokens[place[0], place[1]] += batch.ids.numel()
    finally:
        for handle in handles:
            handle.remove()
