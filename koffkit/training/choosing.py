"""Learning which removed neurons a memory gives back, by what the pruned model still lacks (ours).

Scores begin as sensitivities: what removing a neuron costs the unpruned model. The distillation loss of the
backbone with the neurons chosen so far says more. Its derivative by a neuron's gate, which goes straight
through to the neurons that are not chosen, is what the pruned model would gain by a little of the neuron,
given all else that is gone. Scores go down that slope as in dual averaging (Xiao 2010, JMLR 11), and every
step computes with exactly those neurons that would be chosen then.

Legend: L layers, U neurons of a layer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import IntegrityError
from ..method.gates import straight_through
from ..method.losses.base import Objective
from ..method.restoring import chosen_table, mixed
from ..model.gating import GateValues
from ..model.lower_layers import LowerLayers
from ..planning.neurons import STRUCTURE
from .context import Context, watched
from .distilling import distilled
from .probe import seconds_of

TINY = 1e-30
"""Below every slope."""


@dataclass(frozen=True)
class Learning:
    """How the choice is learned.

    Args:
        steps: how many; each reads a batch of every domain.
        rate: how far all steps together can take scores, in their standard deviations.
        own_share: weight of a domain's own slopes (`koffkit.method.restoring.mixed`).
        first_batch: number of the first batch of a domain's text that is read.
        batch_size: sequences in a batch.
    """

    steps: int
    rate: float
    own_share: float
    first_batch: int
    batch_size: int

    def way(self, step: int) -> float:
        """How far a step goes: shorter and shorter, for at the end no neuron should come and go."""
        left = 1 - (step + 0.5) / self.steps
        return 2 * self.rate * left / self.steps


def learned_scores(
    context: Context, scores: Mapping[str, Tensor], count: int, layout: str, learning: Learning
) -> dict[str, Tensor]:
    """Scores [L, U] by domain, whose highest are the choice.

    Args:
        context: its masks are final.
        scores: the first ones.
        count, layout: see `koffkit.method.restoring.choose_neurons`.
        learning: how.

    Raises:
        IntegrityError: the loss is not a number.
        Interrupted: the user asked to stop.
    """
    assert context.final_masks is not None
    device = context.accelerator.device
    masks = {name: table.to(device) for name, table in context.final_masks.items()}
    removed = masks[STRUCTURE] == 0
    first = {domain: chosen_table(own, removed, count, layout) for domain, own in scores.items()}
    learned = {domain: own.detach().clone() for domain, own in scores.items()}
    spread = {domain: own[removed].std(correction=0) for domain, own in scores.items()}
    (context.teacher or context.student).train()  # gradient checkpointing, if the recipe wants it
    lower = context.lower_layers(masks, sampled=False)
    for step in watched("restore: learned choice", range(learning.steps), context):
        slopes = {}
        for domain, own in learned.items():
            leaf = own.clone().requires_grad_()
            chosen = chosen_table(own, removed, count, layout)
            gates = masks | {STRUCTURE: straight_through(masks[STRUCTURE] + chosen, leaf)}
            _backward(context, domain, gates, lower, learning, step)
            assert leaf.grad is not None
            slopes[domain] = leaf.grad * removed
        for domain, slope in mixed(slopes, learning.own_share).items():
            size = slope[removed].square().mean().sqrt().clamp_min(TINY)  # no batch counts more than another
            learned[domain] -= learning.way(step) * spread[domain] / size * slope
    for domain, own in learned.items():
        other = int((chosen_table(own, removed, count, layout) & ~first[domain]).sum())
        context.progress.message(f"restore: {domain}: learning changed {other:,} of {count:,} neurons")
    return learned


def _backward(
    context: Context, domain: str, gates: GateValues, lower: LowerLayers, learning: Learning, step: int
) -> None:
    """Leave the derivative of the loss in what the gates are made of.

    Args:
        context: see `learned_scores`.
        domain: whose text is read, with its memory, if it has one already.
        gates: of backbone and chosen neurons, [L, U] by structure.
        lower: the layers that are whole.
        learning: how much is read.
        step: which text.
    """
    recipe, model = context.loaded.recipe, context.teacher or context.student
    stream, visit = context.corpus.train[domain], learning.first_batch + step
    batch = stream.batch(visit, learning.batch_size, recipe.sequence_length, recipe.seed)
    batch = batch.to(context.accelerator.device)
    memory = domain if model.memories is not None and model.memories.exist else None
    loss, _, _ = distilled(
        context,
        Objective.named(recipe.distill.loss, recipe.distill),
        batch,
        lambda: model(batch.ids, gates, memory, batch.positions),
        lower,
    )
    if not math.isfinite(loss.item()):
        raise IntegrityError(
            f"restore: the loss on text of {domain} is {loss.item()}, so nothing can be learned from it; set "
            "stages.restore.score to sensitivity, or lower the learning rates of the stages before it."
        )
    context.accelerator.backward(loss)
    model.zero_grad(set_to_none=True)  # of the memory, which does not train here


def probe_steps(context: Context, learning: Learning) -> float:
    """Seconds that such steps take; what they learn is forgotten.

    Args:
        context: see `learned_scores`.
        learning: how many steps, and how much is read in each.
    """
    assert context.final_masks is not None
    nothing = torch.zeros_like(context.final_masks[STRUCTURE], device=context.accelerator.device)
    scores = dict.fromkeys(context.corpus.domains, nothing)
    return seconds_of(lambda: learned_scores(context, scores, 1, "ragged", learning))


__all__ = ["Learning", "learned_scores", "probe_steps"]
