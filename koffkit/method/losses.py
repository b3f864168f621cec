"""What the student is trained on, token by token (method, section 4): KL(teacher || student) on the teacher's
top tokens with the rest as one more outcome; for ablations the full KL, cross-entropy on the text, or a
blend.

The vocabulary projection and the loss go in chunks of tokens, so that no float32 [B, T, V] tensor ever
exists: each chunk is projected, scored and differentiated at once, and only the gradient of the hidden states
is kept.

Legend: C tokens of a chunk, D hidden, V vocabulary, k top tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Kind = Literal["top_k", "full", "cross_entropy", "blended"]
Scored = tuple[Tensor, Tensor]
"""Loss per token [C] and its gradient by the student's logits [C, V]."""


@dataclass(frozen=True)
class TopK:
    """How many of the teacher's tokens are told apart: `count`, or as few as cover `coverage` of its mass (at
    most `count`)."""

    count: int
    coverage: float | None = None


@dataclass(frozen=True)
class Objective:
    """What is minimised.

    Args:
        kind: `top_k` (coarsened KL), `full` (KL over the whole vocabulary), `cross_entropy` (the text itself,
            no teacher), `blended`.
        top: for `top_k` and `blended`.
        blend: share of cross-entropy in `blended`; the rest is the coarsened KL.
    """

    kind: Kind
    top: TopK
    blend: float = 0.5

    @property
    def weights(self) -> dict[str, float]:
        """The terms of the loss and their weights."""
        return {"cross_entropy": {"ce": 1.0}, "blended": {"kl": 1 - self.blend, "ce": self.blend}}.get(
            self.kind, {"kl": 1.0}
        )

    @property
    def needs_teacher(self) -> bool:
        return "kl" in self.weights

    @property
    def needs_labels(self) -> bool:
        return "ce" in self.weights


def coarse_kl(student_logits: Tensor, teacher_logits: Tensor, top: TopK) -> tuple[Tensor, Tensor, Tensor]:
    """KL of the coarsened distributions, and its gradient in closed form.

    With p, q the coarsened teacher and student, d KL / d logit is q - p for a token told apart; the tail
    shares its part of the gradient in proportion to q.

    Args:
        student_logits, teacher_logits: [C, V] over the full vocabulary.

    Returns:
        KL per token [C], the teacher's mass covered by the tokens told apart [C], d KL / d student_logits [C,
        V].
    """
    student_logits, teacher_logits = student_logits.float(), teacher_logits.float()
    tiny = torch.finfo(torch.float32).tiny
    log_z = student_logits.logsumexp(-1, keepdim=True)
    p, q = teacher_logits.softmax(-1), (student_logits - log_z).exp_()
    top_p, index = p.topk(min(top.count, p.shape[-1] - 1), dim=-1)
    kept = _kept(top_p, top.coverage)
    log_q = student_logits.gather(-1, index) - log_z
    top_q = log_q.exp()

    tail_p = p.scatter(-1, index, top_p.masked_fill(kept, 0.0)).sum(-1).clamp_min(tiny)
    tail_q = q.scatter(-1, index, top_q.masked_fill(kept, 0.0)).sum(-1).clamp_min(tiny)
    told = (top_p * (top_p.clamp_min(tiny).log() - log_q)).masked_fill(~kept, 0.0).sum(-1)
    kl = told + tail_p * (tail_p.log() - tail_q.log())

    share = (1 - tail_p / tail_q).unsqueeze(-1)
    gradient = q.mul_(share).scatter_(-1, index, torch.where(kept, top_q - top_p, top_q * share))
    return kl, top_p.masked_fill(~kept, 0.0).sum(-1), gradient


def _kept(top_p: Tensor, coverage: float | None) -> Tensor:
    """True for the leading tokens until their mass reaches `coverage` (the token that crosses it
    included)."""
    if coverage is None:
        return torch.ones_like(top_p, dtype=torch.bool)
    return top_p.cumsum(-1) - top_p < coverage


def full_kl(student_logits: Tensor, teacher_logits: Tensor) -> Scored:
    """KL over the whole vocabulary."""
    log_q, log_p = student_logits.float().log_softmax(-1), teacher_logits.float().log_softmax(-1)
    p = log_p.exp()
    return (p * (log_p - log_q)).sum(-1), log_q.exp() - p


def cross_entropy(student_logits: Tensor, labels: Tensor) -> Scored:
    """Negative log-likelihood of `labels` [C]."""
    log_q = student_logits.float().log_softmax(-1)
    index = labels.unsqueeze(-1)
    gradient = log_q.exp()
    return -log_q.gather(-1, index).squeeze(-1), gradient.scatter_add(
        -1, index, -torch.ones_like(index, dtype=gradient.dtype)
    )


def score(
    student: Tensor, teacher: Tensor | None, labels: Tensor | None, objective: Objective
) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """The terms of the loss per token [C], the covered mass [C] and the gradient of their weighted sum [C,
    V], from logits [C, V]."""
    terms: dict[str, Tensor] = {}
    covered, gradient = (
        torch.ones(len(student), device=student.device),
        torch.zeros((), device=student.device),
    )
    for name, weight in objective.weights.items():
        if name == "ce":
            assert labels is not None
            terms[name], part = cross_entropy(student, labels)
        else:
            assert teacher is not None
            if objective.kind == "full":
                terms[name], part = full_kl(student, teacher)
            else:
                terms[name], covered, part = coarse_kl(student, teacher, objective.top)
        gradient = gradient + part * weight if len(objective.weights) > 1 else part
    return terms, covered, gradient


class _ChunkedLoss(torch.autograd.Function):
    """Scores chunk by chunk in `forward` and keeps the gradient of the student's hidden states for
    `backward`."""

    @staticmethod
    def forward(
        ctx: Any,
        student: Tensor,
        teacher: Tensor | None,
        labels: Tensor | None,
        weight: Tensor,
        objective: Objective,
        chunk: int,
    ) -> tuple[Tensor, ...]:
        count = max(1, student.shape[0])  # a batch in which no token counts has no loss
        sums = {name: torch.zeros((), device=student.device) for name in objective.weights}
        covered_total = torch.zeros((), device=student.device)
        gradients = []
        for first in range(0, student.shape[0], chunk):
            rows = slice(first, first + chunk)
            target = None if teacher is None else F.linear(teacher[rows], weight)
            terms, covered, gradient = score(
                F.linear(student[rows], weight), target, None if labels is None else labels[rows], objective
            )
            for name, values in terms.items():
                sums[name] += values.sum()
            covered_total += covered.sum()
            if student.requires_grad:
                gradients.append(gradient.to(weight.dtype) @ weight)
        if student.requires_grad:
            ctx.save_for_backward(torch.cat(gradients) / count if gradients else torch.zeros_like(student))
        means = [total / count for total in sums.values()]
        covered_mean = covered_total / count if student.shape[0] else torch.ones_like(covered_total)
        ctx.mark_non_differentiable(covered_mean, *means)
        total = torch.stack([means[i] * share for i, share in enumerate(objective.weights.values())]).sum()
        return total, covered_mean, *means

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * gradients[0].to(gradient.dtype), None, None, None, None, None


def training_loss(
    student_hidden: Tensor,
    teacher_hidden: Tensor | None,
    labels: Tensor | None,
    head: Tensor,
    objective: Objective,
    chunk_tokens: int,
) -> tuple[Tensor, Tensor, Mapping[str, Tensor]]:
    """Mean loss per token, the mean teacher mass that the told-apart tokens cover, and the mean of each term.

    Args:
        student_hidden, teacher_hidden: last hidden states [tokens, D], after the final norm; the teacher's if
            the objective needs it.
        labels: the token that follows each position, [tokens], if the objective needs it.
        head: the frozen vocabulary projection [V, D].
        chunk_tokens: tokens whose logits exist at one time.
    """
    loss, covered, *means = _ChunkedLoss.apply(
        student_hidden, teacher_hidden, labels, head, objective, chunk_tokens
    )  # type: ignore[no-untyped-call]
    return loss, covered, dict(zip(objective.weights, means, strict=True))
