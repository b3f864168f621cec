"""The distillation loss of a batch: of whatever student, against the unpruned model.

Legend: B batch, T tokens, D hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ..method.losses.base import Objective
from ..method.losses.chunked import training_loss
from ..model.batch import Batch
from ..model.lower_layers import LowerLayers
from .context import Context
from .profile import span


def distilled(
    context: Context,
    objective: Objective,
    batch: Batch,
    student: Callable[[], Tensor],
    lower: LowerLayers,
    of: int | None = None,
) -> tuple[Tensor, Tensor, Mapping[str, Tensor]]:
    """The differentiable loss, and what else `training_loss` says.

    Args:
        context: whose unpruned model teaches.
        objective: the loss.
        batch: sequences.
        student: gives the student's last hidden states [B, T, D] of the batch.
        lower: the layers in which both compute the same.
        of: of how many positions the loss is the mean; None: of those at hand.
    """
    loss = objective.loss
    with context.accelerator.autocast():
        teacher = None
        if loss.needs_teacher:
            with span("teacher"), torch.no_grad(), lower.recorded():
                teacher = context.taught(batch)
        with span("student"), lower.replayed():
            hidden = student()
        scored = batch.scored(labels=loss.needs_labels)
        labels = batch.ids.roll(-1, 1)[scored] if loss.needs_labels else None
        rows = None if teacher is None else teacher[scored]
        chunk = context.loaded.recipe.distill.chunk_tokens
        with span("loss"):
            return training_loss(hidden[scored], rows, labels, context.student.head, objective, chunk, of)
