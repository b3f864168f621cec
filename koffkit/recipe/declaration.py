"""What a stage tells a recipe about itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from ..strict import StrictModel

if TYPE_CHECKING:
    from .schema import Recipe


class StageDeclaration:
    """What a recipe must know of a stage.

    Args:
        name: its key under `stages`, and the name of its entry point.
        options: the model of what stands below that key; no name of torch may be needed to import it.
        after, before: stages that must not come later, or earlier; those not installed or not in the recipe
            do not matter.
        learns_masks: whether it ends with masks; a recipe begins with the one stage that does.
    """

    name: ClassVar[str]
    options: ClassVar[type[StrictModel]]
    after: ClassVar[tuple[str, ...]] = ()
    before: ClassVar[tuple[str, ...]] = ()
    learns_masks: ClassVar[bool] = False

    def check_recipe(self, options: Any, recipe: Recipe) -> None:
        """Refuse options that contradict the rest of the recipe; by default none do.

        Raises:
            ValueError: with the fields and the remedy.
        """
