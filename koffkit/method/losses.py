"""Token-level KL(teacher || student) on the teacher's top tokens, the rest as one more outcome (method, section 4).

The vocabulary projection and the loss go in chunks of tokens, so that no float32 [B, T, V] tensor ever exists: each chunk is
projected, scored and differentiated at once, and only the gradient of the hidden states is kept.

Legend: C tokens of a chunk, D hidden, V vocabulary, k top tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class TopK:
    """How many of the teacher's tokens are told apart: `count`, or as few as cover `coverage` of its mass (at most `count`)."""

    count: int
    coverage: float | None = None


def coarse_kl(student_logits: Tensor, teacher_logits: Tensor, top: TopK) -> tuple[Tensor, Tensor, Tensor]:
    """KL of the coarsened distributions, and its gradient in closed form.

    With p, q the coarsened teacher and student, d KL / d logit is q - p for a token told apart; the tail shares its part of the
    gradient in proportion to q.

    Args:
        student_logits, teacher_logits: [C, V] over the full vocabulary.

    Returns:
        KL per token [C], the teacher's mass covered by the tokens told apart [C], d KL / d student_logits [C, V].
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
    """True for the leading tokens until their mass reaches `coverage` (the token that crosses it included)."""
    if coverage is None:
        return torch.ones_like(top_p, dtype=torch.bool)
    return top_p.cumsum(-1) - top_p < coverage


class _ChunkedDistillation(torch.autograd.Function):
    """Scores chunk by chunk in `forward` and keeps the gradient of the student's hidden states for `backward`."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, weight: Tensor, top: TopK, chunk: int) -> tuple[Tensor, Tensor]:
        total = torch.zeros((), device=student.device)
        covered_total = torch.zeros((), device=student.device)
        gradients = []
        for hidden, target in zip(torch.split(student, chunk), torch.split(teacher, chunk), strict=True):
            kl, covered, gradient = coarse_kl(F.linear(hidden, weight), F.linear(target, weight), top)
            total += kl.sum()
            covered_total += covered.sum()
            if student.requires_grad:
                gradients.append(gradient.to(weight.dtype) @ weight)
        tokens = student.shape[0]
        if gradients:
            ctx.save_for_backward(torch.cat(gradients) / tokens)
        covered_mean = covered_total / tokens
        ctx.mark_non_differentiable(covered_mean)
        return total / tokens, covered_mean

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * gradients[0].to(gradient.dtype), None, None, None, None


def distillation_loss(student_hidden: Tensor, teacher_hidden: Tensor, head: Tensor, top: TopK, chunk_tokens: int) -> tuple[Tensor, Tensor]:
    """Mean KL per token, and the mean teacher mass the told-apart tokens cover.

    Args:
        student_hidden, teacher_hidden: last hidden states [tokens, D], after the final norm.
        head: the frozen vocabulary projection [V, D].
        chunk_tokens: tokens whose logits exist at one time.
    """
    loss, covered = _ChunkedDistillation.apply(student_hidden, teacher_hidden, head, top, chunk_tokens)  # type: ignore[no-untyped-call]
    return loss, covered
