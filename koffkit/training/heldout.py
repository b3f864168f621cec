"""KL on held-out text while a stage trains, for whoever watches it.

Nothing of training depends on it: no random number is drawn, and no gradient computed.
"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean

import torch
from torch import Tensor

from ..method.likelihood import TokenSums, add_tokens, projected
from .context import Context

MAX_TOKENS = 2048
"""Of each domain: enough to see where the KL goes."""


def heldout_kl(
    context: Context, values: Mapping[str, Tensor] | None, batch_size: int, *, with_memory: bool
) -> float:
    """KL(unpruned || student with the matched memory) in nats per token, the mean over the domains that have
    held-out text.

    Args:
        context: its corpus has the held-out text.
        values: gates [L, U] by name, 0 or 1; None: all open.
        batch_size: sequences at a time.
        with_memory: attach each domain's memory; else the student has none.
    """
    with torch.no_grad():
        return fmean(
            _domain_kl(context, domain, values, batch_size, domain if with_memory else None)
            for domain in context.corpus.domains
            if len(context.corpus.heldout[domain].tokens)
        )


def _domain_kl(
    context: Context, domain: str, values: Mapping[str, Tensor] | None, batch_size: int, memory: str | None
) -> float:
    recipe, sums = context.loaded.recipe, TokenSums()
    batches = context.corpus.heldout[domain].sequences(recipe.sequence_length, batch_size, MAX_TOKENS)
    head = context.student.head
    for batch in batches:
        batch = batch.to(context.accelerator.device)
        with context.accelerator.autocast():
            teacher = context.unpruned(batch.ids, batch.positions)
            student = context.student(batch.ids, values, memory, batch.positions)
        add_tokens(
            sums,
            batch.ids.numel(),
            projected(student.flatten(0, 1), head),
            reference=projected(teacher.flatten(0, 1), head),
            chunk_tokens=recipe.distill.chunk_tokens,
        )
    return sums.mean_kl
