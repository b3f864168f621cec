"""KL(teacher || student) over the whole vocabulary, for ablations.

Legend: C tokens of a chunk, V vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .base import Loss, Scored

if TYPE_CHECKING:
    from torch import Tensor


def full_kl(student_logits: Tensor, teacher_logits: Tensor) -> tuple[Tensor, Tensor]:
    """KL per token [C] and its gradient by the student's logits [C, V], from logits [C, V].

    Args:
        student_logits: [C, V].
        teacher_logits: [C, V].
    """
    log_q, log_p = student_logits.float().log_softmax(-1), teacher_logits.float().log_softmax(-1)
    p = log_p.exp()
    return (p * (log_p - log_q)).sum(-1), log_q.exp() - p


def closed_form(student: Tensor, teacher: Tensor | None, labels: Tensor | None, options: Any) -> Scored:
    assert teacher is not None
    kl, gradient = full_kl(student, teacher)
    return Scored({"kl": kl}, gradient)


LOSS = Loss(closed_form=closed_form, terms=lambda options: {"kl": 1.0})
