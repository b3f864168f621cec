"""The sequences of a step that this process computes."""

from __future__ import annotations

from ..parallel import ranks
from ..planning.shares import Share, shares_of
from ..recipe.schema import Recipe
from ..recipe.training import Training


def own_shares(recipe: Recipe, options: Training, *, retention: bool) -> list[Share]:
    """Those of this process in a step of a stage.

    Args:
        retention: in a step with retention text.
    """
    general = recipe.distill.retention_batch_size if retention else None
    batch_size = general or options.batch_size
    return shares_of(recipe.train.gradient_accumulation, batch_size, ranks.rank(), ranks.size())
