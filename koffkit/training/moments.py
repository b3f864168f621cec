"""Second moments of the MLPs' activations in the unpruned model, domain by domain, for least squares.

Legend: U neurons of a layer.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..data.packing import PackedTokens
from ..errors import DataError
from ..model.neuron_memory import mlp_modules
from .context import Context, watched

AT_ONCE = 4 << 30
"""Bytes of moments that exist at one time; of more layers the text is read again."""
CHECKED = 4
"""Every so many sequences one is kept out of the fit, to check it."""
RETENTION = "retention text"
"""The name of retention text among the domains; no domain has a space in its name."""


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


def layer_moments(context: Context) -> Iterator[LayerMoments]:
    """The moments of every layer in turn, from `mask.repair_tokens` of the training text of all domains and
    of retention text; a quarter of it only checks.

    Raises:
        DataError: there is too little text to keep some of it out.
        Interrupted: the user asked to stop.
    """
    shape, text = context.student.spec.shape, _text(context)
    each = max(1, AT_ONCE // (8 * len(text) * shape.intermediate**2))
    for first in range(0, shape.num_layers, each):
        layers = range(first, min(first + each, shape.num_layers))
        sums = _Sums(layers, list(text), shape.intermediate, context.accelerator.device)
        _read(context, sums, text)
        for layer in layers:
            yield LayerMoments(layer, *(sums.means(layer, kind) for kind in (False, True)))


def _text(context: Context) -> dict[str, tuple[PackedTokens, int]]:
    """Every stream of text, with the number of sequences that are read of it."""
    recipe, corpus = context.loaded.recipe, context.corpus
    streams = dict(corpus.train)
    if corpus.retention is not None:
        streams[RETENTION] = corpus.retention
    wanted = math.ceil(recipe.mask.repair_tokens / recipe.sequence_length / len(streams))
    text = {}
    for name, stream in streams.items():
        count = min(wanted, stream.sequences_of_epoch(recipe.sequence_length))
        if count < 2:
            raise DataError(
                f"mask.repair: {count} sequences of {name} are too few to keep one out; add text, raise "
                "mask.repair_tokens, shorten sequence_length, or use repair: none."
            )
        text[name] = (stream, count)
    return text


class _Sums:
    """Sums of a a^T over tokens, by layer, stream and purpose."""

    def __init__(self, layers: range, names: list[str], units: int, device: torch.device) -> None:
        self.layers, self.names = layers, names
        self.sums = torch.zeros(len(layers), len(names), 2, units, units, device=device)
        self.tokens = torch.zeros(len(names), 2, device=device)

    def means(self, layer: int, check: bool) -> dict[str, Tensor]:
        place, kind = layer - self.layers[0], int(check)
        return {
            name: self.sums[place, index, kind] / self.tokens[index, kind]
            for index, name in enumerate(self.names)
        }


@torch.no_grad()
def _read(context: Context, sums: _Sums, text: Mapping[str, tuple[PackedTokens, int]]) -> None:
    recipe, unpruned = context.loaded.recipe, context.teacher or context.student
    jobs = [
        (index, stream, visit)
        for index, (stream, count) in enumerate(text.values())
        for visit in range(count)
    ]
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
        for index, stream, visit in watched("repair", jobs, context):
            place[:] = index, int(visit % CHECKED == 1)
            batch = stream.batch(visit, 1, recipe.sequence_length, recipe.seed)
            batch = batch.to(context.accelerator.device)
            with context.accelerator.autocast():
                unpruned(batch.ids, positions=batch.positions)
            sums.tokens[place[0], place[1]] += batch.ids.numel()
    finally:
        for handle in handles:
            handle.remove()
