"""A loss: a pure function of logits, and a declaration of its inputs.

A loss's file imports torch inside its functions, because recipes are read without torch.

Legend: C tokens of a chunk, V vocabulary, K the teacher's most likely tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ... import plugins

if TYPE_CHECKING:
    from pydantic import BaseModel
    from torch import Tensor

    FromTargets = Callable[[Tensor, "Targets", Tensor | None, Any], "Scored"]
    PerToken = Callable[[Tensor, Tensor | None, Tensor | None, Any], Tensor]
    ClosedForm = Callable[[Tensor, Tensor | None, Tensor | None, Any], "Scored"]


@dataclass(frozen=True)
class Targets:
    """What a teacher cache knows of the teacher: its most likely tokens, and how much is left for all others.

    Args:
        index: the tokens, most likely first, [..., K].
        probability: theirs, float32 [..., K].
        rest: of all other tokens together, float32 [...].
    """

    index: Tensor
    probability: Tensor
    rest: Tensor

    def __getitem__(self, selection: Any) -> Targets:
        """Those of some tokens: a slice, or a boolean mask over the leading dimensions."""
        return Targets(self.index[selection], self.probability[selection], self.rest[selection])


@dataclass(frozen=True)
class Scored:
    """A loss with its gradient in closed form.

    Args:
        terms: every term of the loss, per token [C].
        gradient: of the weighted sum of the terms by the student's logits, [C, V].
        covered: the teacher's probability mass on the tokens that the loss compares individually, [C]; None:
            all of it.
    """

    terms: Mapping[str, Tensor]
    gradient: Tensor
    covered: Tensor | None = None


def one_term(options: Any) -> dict[str, float]:
    """The terms of a loss that has only one."""
    return {"loss": 1.0}


@dataclass(frozen=True, kw_only=True)
class Loss:
    """One loss. It has either `per_token` or `closed_form`; both take the student's logits [C, V], the
    teacher's [C, V], the labels [C] (each None unless the loss needs it) and the loss's options.

    Args:
        per_token: the loss per token [C], differentiable by autograd.
        closed_form: the same with its gradient, so that autograd is not needed.
        needs_teacher: whether it compares with the unpruned model.
        needs_labels: whether it reads the token that follows each position.
        options: the fields of the recipe's `distill` that belong to this loss.
        terms: from the options to the weight of each term that `closed_form` returns.
        num_targets: from the options to how many of the teacher's most likely tokens the loss compares
            individually, if it needs no more of the teacher than those; None: `distill.cache` refuses it.
        from_targets: `closed_form` with the teacher's `Targets` in the place of its logits.
    """

    per_token: PerToken | None = None
    closed_form: ClosedForm | None = None
    needs_teacher: bool = True
    needs_labels: bool = False
    options: type[BaseModel] | None = None
    terms: Callable[[Any], dict[str, float]] = one_term
    num_targets: Callable[[Any], int] | None = None
    from_targets: FromTargets | None = None

    def __post_init__(self) -> None:
        if (self.per_token is None) == (self.closed_form is None):
            raise TypeError("a loss has either per_token or closed_form")
        if (self.num_targets is None) != (self.from_targets is None):
            raise TypeError("a loss has both of num_targets and from_targets, or neither")


@dataclass(frozen=True)
class Objective:
    """The training objective: a loss and its options."""

    loss: Loss
    options: Any = None

    @classmethod
    def named(cls, name: str, options: Any = None) -> Objective:
        """An installed loss by its recipe name.

        Raises:
            UsageError: there is no such loss.
        """
        return cls(plugins.load(plugins.LOSSES, name, "distill.loss"), options)

    @property
    def weights(self) -> dict[str, float]:
        """The terms of the loss and their weights."""
        return self.loss.terms(self.options)
