"""The declaration of a stage to the recipe."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from ..strict import StrictModel

if TYPE_CHECKING:
    from .schema import Recipe


class StageDeclaration:
    """What a recipe must know about a stage.

    Args:
        name: its key under `stages`, and the name of its entry point.
        options: the model of the fields under that key; it must be importable without torch.
        after, before: stages that must not come later, or earlier; stages that are not installed or not in
            the recipe are ignored.
        learns_masks: whether the stage ends with masks; a recipe begins with the one stage that does.
    """

    name: ClassVar[str]
    options: ClassVar[type[StrictModel]]
    after: ClassVar[tuple[str, ...]] = ()
    before: ClassVar[tuple[str, ...]] = ()
    learns_masks: ClassVar[bool] = False

    def check_recipe(self, options: Any, recipe: Recipe) -> None:
        """Refuse options that contradict the rest of the recipe; the default accepts all.

        Raises:
            ValueError: with the fields and the remedy.
        """
