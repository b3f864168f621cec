"""How long stage `evaluate` will take, from one batch of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .evaluate import EvaluateOptions, conditions_of, facts_of, recall_of
from .scoring import UNPRUNED, likelihood

if TYPE_CHECKING:
    from ..data.packing import PackedTokens
    from ..training.context import Context

FACTS = 32


def probe_evaluate(context: Context, options: EvaluateOptions) -> float:
    """Seconds of the whole stage.

    Args:
        context: with masks. options: of the stage.
    """
    import torch

    context.student.eval()
    with torch.no_grad():
        return _domains(context, options) + _retention(context, options)


def _domains(context: Context, options: EvaluateOptions) -> float:
    from ..data.recall import subsample
    from ..training.probe import seconds_of

    first = context.corpus.domains[0]
    a_token = _seconds_a_token(context, options, first)
    total = 0.0
    for domain in context.corpus.domains:
        conditions = dict(conditions_of(context, options, domain))
        total += a_token * len(conditions) * _read(context.corpus.heldout[domain], options)
        facts = facts_of(context, options, domain)
        if facts:
            some = subsample(facts, FACTS)
            one = seconds_of(lambda: recall_of(context, conditions[UNPRUNED], some)) / len(some)  # noqa: B023
            for name in conditions:
                limit = options.swap_recall_limit if name.startswith("swap.") else None
                total += one * min(len(facts), limit or len(facts))
    return total


def _retention(context: Context, options: EvaluateOptions) -> float:
    stream, memories = context.corpus.retention_heldout, context.student.memories
    if stream is None or len(stream) < 2:
        return 0.0
    count = 3 + (len(memories.domains) if memories is not None and memories.exist else 0)
    a_token = _seconds_a_token(context, options, context.corpus.domains[0])
    return a_token * count * _read(stream, options)


def _seconds_a_token(context: Context, options: EvaluateOptions, domain: str) -> float:
    """Of one token under one condition, from one batch."""
    from ..training.probe import seconds_of

    stream, length = context.corpus.heldout[domain], context.loaded.recipe.sequence_length
    conditions = dict(conditions_of(context, options, domain))
    most = min(options.batch_size * length, _read(stream, options))
    took = seconds_of(lambda: likelihood(context, stream, conditions, options.batch_size, most))
    return took / (max(1, most) * len(conditions))


def _read(stream: PackedTokens, options: EvaluateOptions) -> int:
    return min(len(stream), options.max_tokens or len(stream))
