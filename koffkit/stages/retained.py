"""What the backbone keeps: held-out retention text under the bare backbone, every memory, and the memory that
the router picks.

Legend: B batch, T tokens, D hidden.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from .scoring import UNPRUNED, Hidden, figures_of, likelihood, pruned, unpruned, without_infinities

if TYPE_CHECKING:
    from torch import Tensor

    from ..model.batch import Batch
    from ..router import Features, Router
    from ..training.context import Context


def evaluate_retention(context: Context, batch_size: int, max_tokens: int | None) -> dict[str, Any]:
    """Score the held-out part of the retention text.

    Args:
        context: after masks and memories are learned.
        batch_size: sequences at a time.
        max_tokens: the most tokens to read; None: all.

    Returns:
        `tokens` (how many were scored), and figures (`perplexity`, `kl`) of `unpruned`, `backbone`, `auto`
        (if there is a router) and, by domain, of `memories`; empty without held-out retention text.
    """
    stream = context.corpus.retention_heldout
    if stream is None or len(stream) < 2:
        return {}
    names = _memory_names(context)
    conditions = {UNPRUNED: unpruned(context), "backbone": pruned(context, None)}
    if names and context.run.router_dir.is_dir():
        conditions["auto"] = _routed(context, _router(context))
    own = {f"memory {name}": pruned(context, name) for name in names}
    sums = likelihood(context, stream, conditions | own, batch_size, max_tokens)
    if not sums[UNPRUNED].tokens:
        return {}
    found: dict[str, Any] = {"tokens": sums[UNPRUNED].tokens}
    found |= {name: figures_of(sums[name]) for name in conditions}
    if names:
        found["memories"] = {name: figures_of(sums[f"memory {name}"]) for name in names}
    finite: dict[str, Any] = without_infinities(found)
    return finite


def _memory_names(context: Context) -> list[str]:
    memories = context.student.memories
    return list(memories.domains) if memories is not None and memories.exist else []


def _router(context: Context) -> Router:
    """The run's router, which may read the backbone."""
    from ..arch.weights import vocab_size
    from ..model.pooling import pooled_features
    from ..router import load_router

    def features(layer: int, max_tokens: int) -> Features:
        hidden = partial(context.student.hidden_states, layer=layer, gate_values=context.masks)
        return pooled_features(
            hidden,
            context.tokenizer,
            max_tokens,
            16,
            context.accelerator.device,
            vocab_size=vocab_size(context.student.spec.config),
        )

    router = load_router(context.run.router_dir)
    router.read_backbone(features)
    return router


def _routed(context: Context, router: Router) -> Hidden:
    """The backbone with the memory that the router picks for each sequence."""
    import torch

    def hidden(batch: Batch) -> Tensor:
        ids = batch.ids
        texts = [str(text) for text in context.tokenizer.batch_decode(ids, skip_special_tokens=True)]
        chosen = [name for name, _ in router.route(texts, allowed=_memory_names(context))]
        states: Tensor | None = None
        for name in dict.fromkeys(chosen):
            rows = torch.tensor([row for row, other in enumerate(chosen) if other == name], device=ids.device)
            part = pruned(context, name)(_rows(batch, rows))
            states = part.new_empty((len(ids), *part.shape[1:])) if states is None else states
            states[rows] = part
        assert states is not None  # a batch has at least one row
        return states

    return hidden


def _rows(batch: Batch, rows: Tensor) -> Batch:
    return type(batch)(*(None if part is None else part[rows] for part in batch))  # type: ignore[arg-type]
