"""A weighted sum of the KL on the teacher's top tokens and the cross-entropy on the text, for ablations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from . import top_k
from .base import Loss, Scored, Targets
from .cross_entropy import cross_entropy

if TYPE_CHECKING:
    from torch import Tensor


class Options(top_k.Options):
    blend: float = Field(0.5, gt=0, lt=1, description="Share of cross-entropy in the blended loss.")


def weights(options: Any) -> dict[str, float]:
    return {"kl": 1 - options.blend, "ce": options.blend}


def closed_form(student: Tensor, teacher: Tensor | None, labels: Tensor | None, options: Any) -> Scored:
    assert teacher is not None
    return from_targets(student, top_k.targets_of(teacher, top_k.num_targets(options)), labels, options)


def from_targets(student: Tensor, teacher: Targets, labels: Tensor | None, options: Any) -> Scored:
    assert labels is not None
    kl, covered, kl_gradient = top_k.coarse_kl(student, teacher, top_k.TopK.of(options))
    ce, ce_gradient = cross_entropy(student, labels)
    weight = weights(options)
    gradient = kl_gradient * weight["kl"] + ce_gradient * weight["ce"]
    return Scored({"kl": kl, "ce": ce}, gradient, covered)


LOSS = Loss(
    closed_form=closed_form,
    needs_labels=True,
    options=Options,
    terms=weights,
    num_targets=top_k.num_targets,
    from_targets=from_targets,
)
