"""What a stage is. Ours are one file each, found by the entry points `koffkit.stages`; so are those of other
packages.

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


class StageKind(StageDeclaration, ABC):
    """A stage: its declaration, and what it does."""

    def check(self, options: Any, loaded: LoadedRecipe, base: ModelSpec) -> None:
        """Refuse, before anything is learned, what would fail only after the earlier stages.

        Args:
            options: an instance of the class's `options`.

        Raises:
            KoffkitError: with the field and the remedy.
        """

    @abstractmethod
    def run(self, context: Context, options: Any, resume: Checkpoint | None) -> None:
        """Carry the stage out.

        What it learns it leaves in `context.student`; figures go into `context.results`, and what
        `run.json` is to say of the model into `context.learned`. A stage that learns masks leaves its scores
        in the student's gates and calls `context.set_masks()`. A stage that is run again after an
        interruption, and saved no checkpoint, starts at its beginning.

        Args:
            options: an instance of the class's `options`.
            resume: a checkpoint inside this stage to continue from, made with `save_checkpoint`.

        Raises:
            Interrupted: `context.stop()` said so, and what was done so far is saved.
        """
