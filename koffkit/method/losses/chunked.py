"""A loss over many tokens: the vocabulary projection and the loss are computed in chunks of tokens, so that
no float32 [B, T, V] tensor ever exists. Each chunk is projected, scored and differentiated at once, and only
the gradient of the hidden states is kept.

Legend: C tokens of a chunk, D hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .base import Objective, Scored, Targets


def score(
    student: Tensor, teacher: Tensor | Targets | None, labels: Tensor | None, objective: Objective
) -> Scored:
    """The loss of a chunk and its gradient: in closed form if the loss has one, else by autograd.

    Args:
        student: logits [C, V]. teacher: logits [C, V], or its most likely tokens. labels: [C].
    """
    loss, options = objective.loss, objective.options
    if isinstance(teacher, Targets):
        assert loss.from_targets is not None, "the recipe was checked"
        return loss.from_targets(student, teacher, labels, options)
    if loss.closed_form is not None:
        return loss.closed_form(student, teacher, labels, options)
    assert loss.per_token is not None
    with torch.enable_grad():
        logits = student.detach().requires_grad_()
        values = loss.per_token(logits, teacher, labels, options)
        (gradient,) = torch.autograd.grad(values.sum(), logits)
    (name,) = objective.weights
    return Scored({name: values.detach()}, gradient)


class _ChunkedLoss(torch.autograd.Function):
    """Scores chunk by chunk in `forward` and keeps the gradient of the student's hidden states for
    `backward`."""

    @staticmethod
    def forward(
        ctx: Any,
        student: Tensor,
        teacher: Tensor | Targets | None,
        labels: Tensor | None,
        weight: Tensor,
        objective: Objective,
        chunk: int,
        of: int,
    ) -> tuple[Tensor, ...]:
        count = max(1, of)  # the loss of a batch in which no token counts is 0
        weights = objective.weights
        sums = {name: torch.zeros((), device=student.device) for name in weights}
        covered_total = torch.zeros((), device=student.device)
        gradients = []
        for first in range(0, student.shape[0], chunk):
            rows = slice(first, first + chunk)
            target = None if teacher is None else teacher[rows]
            if isinstance(target, Tensor):
                target = F.linear(target, weight)
            scored = score(
                F.linear(student[rows], weight), target, None if labels is None else labels[rows], objective
            )
            for name, values in scored.terms.items():
                sums[name] += values.sum()
            size = len(next(iter(scored.terms.values())))
            covered_total += size if scored.covered is None else scored.covered.sum()
            if student.requires_grad:
                gradients.append(scored.gradient.to(weight.dtype) @ weight)
        if student.requires_grad:
            ctx.save_for_backward(torch.cat(gradients) / count if gradients else torch.zeros_like(student))
        means = [total / count for total in sums.values()]
        covered_mean = covered_total / count if of else torch.ones_like(covered_total)
        ctx.mark_non_differentiable(covered_mean, *means)
        total = torch.stack([means[i] * part for i, part in enumerate(weights.values())]).sum()
        return total, covered_mean, *means

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * gradients[0].to(gradient.dtype), None, None, None, None, None, None


def training_loss(
    student_hidden: Tensor,
    teacher: Tensor | Targets | None,
    labels: Tensor | None,
    head: Tensor,
    objective: Objective,
    chunk_tokens: int,
    of: int | None = None,
) -> tuple[Tensor, Tensor, Mapping[str, Tensor]]:
    """Mean loss per token, the mean teacher mass on the tokens that the loss compares individually, and the
    mean of each term.

    Args:
        student_hidden: last hidden states [tokens, D], after the final norm.
        teacher: the same of the teacher, or its most likely tokens; None if the loss needs neither.
        labels: the token that follows each position, [tokens], if the loss needs it.
        head: the frozen vocabulary projection [V, D].
        chunk_tokens: tokens whose logits exist at once.
        of: of how many tokens the means are, if these are a process's share of a batch: what the processes
            get then adds up to the means of the batch. None: of these.
    """
    tokens = student_hidden.shape[0] if of is None else of
    loss, covered, *means = _ChunkedLoss.apply(
        student_hidden, teacher, labels, head, objective, chunk_tokens, tokens
    )  # type: ignore[no-untyped-call]
    return loss, covered, dict(zip(objective.weights, means, strict=True))
