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


def coarse_kl(student_logits: Tensor, teacher_logits: Tensor, top: TopK) -> tuple[Tensor, Tensor]:
    """KL of the coarsened distributions.

    Args:
        student_logits, teacher_logits: [C, V] over the full vocabulary.

    Returns:
        KL per token [C] and the teacher's mass covered by the tokens told apart [C].
    """
    teacher = F.log_softmax(teacher_logits.float(), dim=-1)
    student_logits = student_logits.float()
    count = min(top.count, teacher.shape[-1] - 1)
    log_p, index = teacher.topk(count, dim=-1)
    kept = _kept(log_p, top.coverage)
    log_p = log_p.masked_fill(~kept, -torch.inf)
    p = log_p.exp()
    covered = p.sum(-1)

    normaliser = student_logits.logsumexp(-1, keepdim=True)
    log_q = student_logits.gather(-1, index) - normaliser
    if bool(kept.all()):
        tail = torch.ones_like(student_logits, dtype=torch.bool).scatter(-1, index, False)
    else:
        tail = torch.ones_like(student_logits, dtype=torch.bool).scatter(-1, index, ~kept)
    log_q_tail = student_logits.masked_fill(~tail, -torch.inf).logsumexp(-1) - normaliser.squeeze(-1)
    log_p_tail = teacher.masked_fill(~tail, -torch.inf).logsumexp(-1)
    p_tail = log_p_tail.exp()

    top_terms = torch.where(kept, p * (log_p.masked_fill(~kept, 0.0) - log_q), 0.0).sum(-1)
    return top_terms + p_tail * (log_p_tail - log_q_tail), covered


def _kept(log_p: Tensor, coverage: float | None) -> Tensor:
    """True for the leading tokens until their mass reaches `coverage` (the token that crosses it included)."""
    if coverage is None:
        return torch.ones_like(log_p, dtype=torch.bool)
    p = log_p.exp()
    return p.cumsum(-1) - p < coverage


class _ChunkedDistillation(torch.autograd.Function):
    """Scores chunk by chunk in `forward` and keeps the gradient of the student's hidden states for `backward`."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, weight: Tensor, top: TopK, chunk: int) -> tuple[Tensor, Tensor]:
        total = torch.zeros((), device=student.device)
        covered_total = torch.zeros((), device=student.device)
        gradient = torch.empty_like(student) if student.requires_grad else None
        for start in range(0, student.shape[0], chunk):
            part = slice(start, start + chunk)
            with torch.enable_grad():
                hidden = student[part].detach().requires_grad_(gradient is not None)
                with torch.no_grad():
                    teacher_logits = F.linear(teacher[part], weight)
                kl, covered = coarse_kl(F.linear(hidden, weight), teacher_logits, top)
                if gradient is not None:
                    (gradient[part],) = torch.autograd.grad(kl.sum(), hidden)
            total += kl.detach().sum()
            covered_total += covered.sum()
        tokens = student.shape[0]
        if gradient is not None:
            ctx.save_for_backward(gradient / tokens)
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
