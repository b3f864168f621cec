"""Figures of training for the trackers of accelerate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..recipe.training import Training
from .context import Context


def track(context: Context, stage: str, step: int, figures: Mapping[str, Any]) -> None:
    """Hand the figures of a step to the trackers that the recipe names.

    Args:
        context: see `Context`.
        stage: the stage's name in the recipe.
        step: steps done in this stage; trackers see steps numbered across all stages.
        figures: of the step; only numbers are tracked.
    """
    recipe = context.loaded.recipe
    if recipe.train.trackers:
        names = [other.name for other in recipe.stages]
        earlier = [other.options for other in recipe.stages[: names.index(stage)]]
        before = sum(options.max_steps for options in earlier if isinstance(options, Training))
        numbers = {f"{stage}/{key}": value for key, value in figures.items() if not isinstance(value, str)}
        context.accelerator.log(numbers, step=before + step)
