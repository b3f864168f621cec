"""KL(teacher || student) on the teacher's top tokens, with the rest as one more outcome (method, section 4).

Legend: C tokens of a chunk, V vocabulary, K top tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import Field, model_validator

from ...strict import Positive, StrictModel, with_new_name
from .base import Loss, Scored, Targets

if TYPE_CHECKING:
    from torch import Tensor


class TopP(StrictModel):
    top_p: float = Field(
        gt=0,
        lt=1,
        description="As few of the teacher's most likely tokens as have this probability together ...",
    )
    max: Positive = Field(1024, description="... but never more than this many.")

    @model_validator(mode="before")
    @classmethod
    def _former_names(cls, data: Any) -> Any:
        return with_new_name(data, "coverage", "top_p")


class Options(StrictModel):
    top_k: Positive | TopP = Field(
        100,
        description="The teacher's most likely tokens, by number or by {top_p: P}; "
        "the others are one more outcome.",
    )


@dataclass(frozen=True)
class TopK:
    """Which of the teacher's tokens are compared individually: the `count` most likely, or the fewest that
    hold `top_p` of its probability mass (at most `count`)."""

    count: int
    top_p: float | None = None

    @classmethod
    def of(cls, options: Any) -> TopK:
        """From the recipe's `distill.top_k`."""
        top = options.top_k
        return cls(top.max, top.top_p) if isinstance(top, TopP) else cls(top)


def num_targets(options: Any) -> int:
    """How many of the teacher's most likely tokens the loss compares individually, at most."""
    return TopK.of(options).count


def targets_of(teacher_logits: Tensor, count: int) -> Targets:
    """The teacher's most likely tokens.

    Args:
        teacher_logits: [C, V] over the full vocabulary.
        count: how many; one token at least is always left for the rest.
    """
    p = teacher_logits.float().softmax(-1)
    top_p, index = p.topk(min(count, p.shape[-1] - 1), dim=-1)
    return Targets(index, top_p, p.scatter_(-1, index, 0.0).sum(-1))


def coarse_kl(student_logits: Tensor, teacher: Targets, top: TopK) -> tuple[Tensor, Tensor, Tensor]:
    """KL of the coarsened distributions, and its gradient in closed form.

    With p, q the coarsened teacher and student, d KL / d logit is q - p for a top token; the tail shares its
    part of the gradient in proportion to q.

    Args:
        student_logits: [C, V] over the full vocabulary.
        teacher: its most likely tokens, at least as many as `top` wants.

    Returns:
        KL per token [C], the teacher's mass on the top tokens [C], d KL / d student_logits [C, V].
    """
    import torch

    tiny = torch.finfo(torch.float32).tiny
    student_logits = student_logits.float()
    log_z = student_logits.logsumexp(-1, keepdim=True)
    q = (student_logits - log_z).exp_()
    kept = _kept(teacher.probability, top)
    index, top_p = teacher.index, teacher.probability
    log_q = student_logits.gather(-1, index) - log_z
    top_q = log_q.exp()

    tail_p = (teacher.rest + top_p.masked_fill(kept, 0.0).sum(-1)).clamp_min(tiny)
    tail_q = q.scatter_(-1, index, top_q.masked_fill(kept, 0.0)).sum(-1).clamp_min(tiny)
    top_kl = (top_p * (top_p.clamp_min(tiny).log() - log_q)).masked_fill(~kept, 0.0).sum(-1)
    kl = top_kl + tail_p * (tail_p.log() - tail_q.log())

    ratio = (1 - tail_p / tail_q).unsqueeze(-1)
    gradient = q.mul_(ratio).scatter_(-1, index, torch.where(kept, top_q - top_p, top_q * ratio))
    return kl, top_p.masked_fill(~kept, 0.0).sum(-1), gradient


def _kept(probabilities: Tensor, top: TopK) -> Tensor:
    """True for the leading tokens [C, K] up to and including the one at which their mass reaches `top_p`, at
    most `count`."""
    kept = probabilities.new_ones(probabilities.shape).bool()
    if top.top_p is not None:
        kept = probabilities.cumsum(-1) - probabilities < top.top_p
    kept[..., top.count :] = False
    return kept


def closed_form(student: Tensor, teacher: Tensor | None, labels: Tensor | None, options: Any) -> Scored:
    assert teacher is not None
    return from_targets(student, targets_of(teacher, num_targets(options)), labels, options)


def from_targets(student: Tensor, teacher: Targets, labels: Tensor | None, options: Any) -> Scored:
    kl, covered, gradient = coarse_kl(student, teacher, TopK.of(options))
    return Scored({"kl": kl}, gradient, covered)


LOSS = Loss(
    closed_form=closed_form,
    options=Options,
    terms=lambda options: {"kl": 1.0},
    num_targets=num_targets,
    from_targets=from_targets,
)
