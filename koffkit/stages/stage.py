"""The base class of stages. Each stage is one file, registered under the entry points `koffkit.stages`, here
or in another package.

A stage's file is imported whenever a recipe is read, before `koffkit.recipe.schema` is complete. Import that
module, and what needs torch, inside the functions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

from ..recipe.declaration import StageDeclaration

if TYPE_CHECKING:
    from ..checkpoint.spec import ModelSpec
    from ..recipe.load import LoadedRecipe
    from ..training.checkpoint import Checkpoint
    from ..training.context import Context
    from ..training.probe import Probe


class StageKind(StageDeclaration, ABC):
    """A stage: its declaration, and what it does."""

    def check(self, options: Any, loaded: LoadedRecipe, base: ModelSpec) -> None:
        """Refuse, before anything is learned, what would fail only after the earlier stages.

        Args:
            options: an instance of the class's `options`.
            loaded: the recipe.
            base: the unpruned base.

        Raises:
            KoffkitError: with the field and the remedy.
        """

    def probe(self, context: Context, options: Any, probe: Probe) -> float | None:
        """How many seconds the stage will take, from some real steps of it; None: the text decides.

        Args:
            context: as for `run`, with what the stages before left of the same, in a folder that is thrown
                away.
            options: an instance of the class's `options`.
            probe: how many steps; a training stage calls `koffkit.training.probe.probe_training` with it.
        """
        return None

    @abstractmethod
    def run(self, context: Context, options: Any, resume: Checkpoint | None) -> None:
        """Run the stage.

        What it learns stays in `context.student`; figures go into `context.results`, and facts about the
        model for `run.json` into `context.learned`. A stage that learns masks leaves its scores
        in the student's gates and calls `context.set_masks()`. A stage that was
        interrupted before it saved a checkpoint starts anew.

        Args:
            context: see `Context`.
            options: an instance of the class's `options`.
            resume: a checkpoint inside this stage to continue from, made with `save_checkpoint`.

        Raises:
            Interrupted: `context.stop()` is true; what was done so far is saved.
        """
