"""What a run would do, said before anything is downloaded but the base's config."""

from __future__ import annotations

from ..checkpoint.spec import ModelSpec
from ..hub import locate
from ..recipe.load import LoadedRecipe
from ..recipe.plan import Plan, make_plan


def plan_of(loaded: LoadedRecipe) -> Plan:
    """The plan of a recipe, from its text and the base's `config.json` alone.

    Raises:
        DataError: there is no such base.
        UsageError: the architecture is not supported, or the budget or the layers cannot be met.
    """
    base = loaded.recipe.base
    folder = locate(base.model, loaded.root, revision=base.revision, config_only=True)
    return make_plan(loaded.recipe, ModelSpec.open(folder))
