"""What a stage is, and what it works with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from accelerate import Accelerator
from torch import Tensor

from ..data.corpus import Corpus
from ..errors import Interrupted
from ..method.budget import Budget
from ..model.student import Student
from ..progress import Progress
from ..recipe.load import LoadedRecipe
from ..run.folder import RunFolder

T = TypeVar("T")


@dataclass
class Context:
    """Everything a stage may use.

    Args:
        masks: None until `learn_masks` is done: hard gates, [L, U] by structure.
        learned: what stages have settled of `run.json`.
        teacher: the unpruned model, where the student is a backbone that is sliced already; None: the student
            with all gates off.
    """

    loaded: LoadedRecipe
    run: RunFolder
    corpus: Corpus
    tokenizer: Any
    accelerator: Accelerator
    student: Student
    budget: Budget
    progress: Progress
    stop: Callable[[], bool] = lambda: False
    masks: dict[str, Tensor] | None = None
    results: dict[str, Any] = field(default_factory=dict)
    learned: dict[str, Any] = field(default_factory=dict)
    teacher: Student | None = None

    def unpruned(self, input_ids: Tensor) -> Tensor:
        """Last hidden states [B, T, D] of the unpruned model; no structure touches what projects them, so the
        student's `head` fits."""
        hidden: Tensor = (self.teacher or self.student)(input_ids)
        return hidden


def stage_options(context: Context, name: str) -> Any:
    """The recipe's options for a stage."""
    return next(stage.options for stage in context.loaded.recipe.stages if stage.name == name)


def watched(name: str, items: Sequence[T], context: Context) -> Iterator[T]:
    """The items, one after the other, with progress; stops between two of them when the user asks to.

    Raises:
        Interrupted: the user asked to stop.
    """
    context.progress.start(name, len(items), 0)
    for done, item in enumerate(items, 1):
        if context.stop():
            raise Interrupted(f"interrupted in {name}; continue with the same command and --resume.")
        yield item
        context.progress.advance(name, done, {})
