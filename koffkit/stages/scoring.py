"""Likelihood and KL of the models of a run on held-out text, under any number of conditions at once.

Legend: B batch, T tokens, D hidden.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from ..data.packing import PackedTokens
    from ..method.likelihood import TokenSums
    from ..model.batch import Batch
    from ..training.context import Context

Hidden = Callable[["Batch"], "Tensor"]
"""A condition: from a batch to last hidden states [B, T, D]."""
UNPRUNED = "unpruned"


def unpruned(context: Context) -> Hidden:
    """The unpruned model."""

    def hidden(batch: Batch) -> Tensor:
        with context.accelerator.autocast():
            return context.unpruned(batch.ids, batch.positions)

    return hidden


def pruned(context: Context, memory: str | None) -> Hidden:
    """The backbone with a memory, or with none."""

    def hidden(batch: Batch) -> Tensor:
        with context.accelerator.autocast():
            states: Tensor = context.student(batch.ids, context.masks, memory, batch.positions)
        return states

    return hidden


def likelihood(
    context: Context,
    stream: PackedTokens,
    conditions: Mapping[str, Hidden],
    batch_size: int,
    max_tokens: int | None,
    step_done: Callable[[], None] = lambda: None,
) -> dict[str, TokenSums]:
    """Likelihood, and KL to the unpruned model, of every condition on held-out tokens.

    Args:
        stream: the tokens.
        conditions: by name, `unpruned` among them, which is the reference.
        batch_size: sequences at a time.
        max_tokens: the most tokens to read; None: all.
        step_done: called after every condition of a batch.
    """
    import torch

    from ..method.likelihood import TokenSums, add_tokens, projected

    sums = {name: TokenSums() for name in conditions}
    recipe, head = context.loaded.recipe, context.student.head
    for batch in stream.sequences(recipe.sequence_length, batch_size, max_tokens):
        batch = batch.to(context.accelerator.device)
        counted = torch.ones_like(batch.ids, dtype=torch.bool) if batch.loss_mask is None else batch.loss_mask
        scored = counted[:, 1:]
        targets = batch.ids[:, 1:][scored]
        reference = projected(conditions[UNPRUNED](batch)[:, :-1][scored], head)
        for name, hidden in conditions.items():
            same = name == UNPRUNED
            model = reference if same else projected(hidden(batch)[:, :-1][scored], head)
            chunk = recipe.distill.chunk_tokens
            add_tokens(
                sums[name], len(targets), model, targets=targets, reference=reference, chunk_tokens=chunk
            )
            step_done()
    return sums


def figures_of(sums: TokenSums) -> dict[str, Any]:
    """`perplexity` and `kl`."""
    return {"perplexity": sums.perplexity, "kl": sums.mean_kl}


def without_infinities(value: Any) -> Any:
    """A value with None for infinities, which JSON cannot hold."""
    if isinstance(value, dict):
        return {key: without_infinities(part) for key, part in value.items()}
    return value if not isinstance(value, float) or math.isfinite(value) else None
