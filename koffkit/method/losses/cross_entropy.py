"""Cross-entropy on the text itself, without a teacher (supervised fine-tuning), for ablations.

Legend: C tokens of a chunk, V vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .base import Loss, Scored

if TYPE_CHECKING:
    from torch import Tensor


def cross_entropy(student_logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood of `labels` [C] per token [C], and its gradient by the logits [C, V].

    Args:
        student_logits: [C, V].
        labels: the next token's id, [C].
    """
    log_q = student_logits.float().log_softmax(-1)
    index = labels.unsqueeze(-1)
    gradient = log_q.exp()
    minus_one = -gradient.new_ones(index.shape)
    return -log_q.gather(-1, index).squeeze(-1), gradient.scatter_add(-1, index, minus_one)


def closed_form(student: Tensor, teacher: Tensor | None, labels: Tensor | None, options: Any) -> Scored:
    assert labels is not None
    values, gradient = cross_entropy(student, labels)
    return Scored({"ce": values}, gradient)


LOSS = Loss(
    closed_form=closed_form, needs_teacher=False, needs_labels=True, terms=lambda options: {"ce": 1.0}
)
