"""Initial gates: all equal (cold), or ranked by an estimate of how much the unpruned model needs each unit
(warm; ours).

Legend: L layers, U units of a structure in one layer.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..arch import Cut
from ..data.packing import Batch
from ..method.losses.base import Objective
from ..method.losses.chunked import training_loss
from ..recipe.training import Training
from .context import Context, watched


def warm_start(context: Context, options: Training) -> None:
    """Spread the gates' `log_alpha` by saliency, in standard deviations of its logarithm, around the cold
    start.

    `taylor`: |d loss / d gate| of the next-token loss, gates at one (Molchanov et al. 2017, arXiv
    1611.06440). `activation`: root mean square of what the gate multiplies, times the norm of the weights
    that read it (as in Wanda, arXiv 2306.11695). Ranks are taken within a layer for layout `uniform`, over
    all layers for `ragged`.
    """
    mask, gates = context.loaded.recipe.mask, context.student.gates
    if mask.init == "cold" or gates is None:
        return
    measure = _taylor if mask.init == "taylor" else _activation
    saliencies = measure(context, options)
    with torch.no_grad():
        for name, saliency in saliencies.items():
            score = saliency.clamp_min(1e-12).log()
            over = (-1,) if mask.layout == "uniform" else (0, 1)
            # a single unit has no deviation: it keeps its value
            units = score.shape[-1] if over == (-1,) else score.numel()
            std = score.std(over, keepdim=True, correction=min(1, units - 1)).clamp_min(1e-6)
            gates.log_alpha[name].add_(mask.init_std * (score - score.mean(over, keepdim=True)) / std)


def _batches(context: Context, options: Training) -> list[Batch]:
    recipe, corpus = context.loaded.recipe, context.corpus
    return [
        corpus.train[domain]
        .batch(visit, options.batch_size, recipe.sequence_length, recipe.seed)
        .to(context.accelerator.device)
        for visit in range(recipe.mask.init_batches)
        for domain in corpus.domains
    ]


def _taylor(context: Context, options: Training) -> dict[str, Tensor]:
    student, recipe = context.student, context.loaded.recipe
    assert student.gates is not None
    values = {
        name: torch.ones_like(alpha, requires_grad=True) for name, alpha in student.gates.log_alpha.items()
    }
    total = {name: torch.zeros_like(alpha) for name, alpha in values.items()}
    objective = Objective.named("cross_entropy")
    for batch in watched("warm start", _batches(context, options), context):
        with context.accelerator.autocast():
            hidden = student(batch.ids, values, positions=batch.positions)[:, :-1].flatten(0, 1)
            loss, _, _ = training_loss(
                hidden, None, batch.ids[:, 1:].flatten(), student.head, objective, recipe.distill.chunk_tokens
            )
        for name, gradient in zip(values, torch.autograd.grad(loss, list(values.values())), strict=True):
            total[name] += gradient.abs()
    return total


@torch.no_grad()
def _activation(context: Context, options: Training) -> dict[str, Tensor]:
    student = context.student
    assert student.gates is not None
    total = {name: torch.zeros_like(alpha) for name, alpha in student.gates.log_alpha.items()}
    points = {
        name: point
        for structure in student.spec.arch.structures.values()
        for name, point in structure.gate_points().items()
    }
    handles = []
    for name, sums in total.items():
        for index in range(student.spec.shape.num_layers):
            module = student.model.get_submodule(student.spec.arch.layer(index) + points[name].module)
            units = torch.from_numpy(points[name].unit_of_channel(student.spec.shape)).to(sums.device)
            hook = partial(_add_squares, points[name], units, sums[index])
            handles.append(module.register_forward_hook(hook))
    try:
        for batch in watched("warm start", _batches(context, options), context):
            with context.accelerator.autocast():
                student(batch.ids, positions=batch.positions)
    finally:
        for handle in handles:
            handle.remove()
    return {name: sums.sqrt() for name, sums in total.items()}


def _add_squares(
    point: Cut, units: Tensor, sums: Tensor, module: nn.Module, inputs: tuple[Any, ...], output: Tensor
) -> None:
    values = (inputs[0] if point.side == "in" else output).float()
    squares = values.flatten(0, -2).square().mean(0)
    if point.side == "in":
        squares = squares * _matrix(module).float().square().sum(0)
    sums.index_add_(0, units, squares)


def _matrix(module: Any) -> Tensor:
    """The weight of a linear module, wrapped by peft or not."""
    weight: Tensor = module.get_base_layer().weight if hasattr(module, "get_base_layer") else module.weight
    return weight
