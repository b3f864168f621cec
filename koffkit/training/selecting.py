"""Scoring the units of the unpruned model with a one-shot selector, on calibration text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..data.corpus import RETENTION
from ..method.restoring import mixed, scores_for_memories
from ..planning.neurons import STRUCTURE, restored_neurons
from .calibration import calibration, calibration_batches
from .context import Context
from .restoring import stored_dtype
from .shared import computed_once

if TYPE_CHECKING:
    from ..selectors import Selector
    from ..selectors.base import Saliencies

LABEL = "select_masks"


def select(
    context: Context, selector: Selector, settings: Mapping[str, Any], own_share: float | None
) -> None:
    """Leave a selector's scores in the student's gates.

    Args:
        context: see `Context`.
        selector: what scores them.
        settings: options of stage `select_masks`: `batches`, `batch_size` and `text`.
        own_share: the memories give neurons back, which are chosen with this weight of a domain's own scores
            (`koffkit.method.restoring.mixed`); None: they are not counted on.
    """
    sources: list[str | None] = [] if settings["text"] == "retention" else list(context.corpus.domains)
    if settings["text"] != "domains" and context.corpus.retention is not None:
        sources.append(None)
    if own_share is None:
        scores = _scored(context, selector, settings, sources)
    else:
        scores = _for_memories(context, selector, settings, sources, own_share)
    _use(context, scores)


def _scored(
    context: Context, selector: Selector, settings: Mapping[str, Any], sources: Sequence[str | None]
) -> Saliencies:
    """The scores by the text of some domains, and of None: retention text."""
    names = [RETENTION if name is None else name for name in sources]
    label = f"{LABEL} ({names[0]})" if len(names) == 1 else LABEL
    depends = dict(settings) | {"sources": names}
    if not selector.any_sparsity:
        depends["budget"] = context.budget.to_json()
    batches = calibration_batches(context, settings["batches"], settings["batch_size"], sources)
    return computed_once(
        context,
        LABEL,
        depends,
        lambda: dict(selector.scores(calibration(context, label, batches), context.budget)),
    )


def _for_memories(
    context: Context,
    selector: Selector,
    settings: Mapping[str, Any],
    sources: Sequence[str | None],
    own_share: float,
) -> Saliencies:
    """The sums of the scores by each text, where a neuron counts with no more than its place in a memory
    costs."""
    wanted, gates, spec = context.loaded.recipe.memory.neurons, context.student.gates, context.student.spec
    assert wanted is not None and gates is not None
    found = {source: _scored(context, selector, settings, [source]) for source in sources}
    totals = {gate: torch.stack([own[gate] for own in found.values()]).sum(0) for gate in found[sources[0]]}
    names = gates.points[STRUCTURE]
    neurons = {source: torch.stack([own[gate] for gate in names]).amin(0) for source, own in found.items()}
    general = neurons.pop(None, None)

    def keep(worth: Tensor) -> Tensor:
        _use(context, totals | dict.fromkeys(names, worth))
        return gates.hard(context.budget)[STRUCTURE] > 0

    by_domain = {source: own for source, own in neurons.items() if source is not None}
    count = restored_neurons(wanted, spec, stored_dtype(spec).itemsize)
    worth = scores_for_memories(mixed(by_domain, own_share), general, keep, count, wanted.layout)
    return totals | dict.fromkeys(names, worth)


@torch.no_grad()
def _use(context: Context, scores: Saliencies) -> None:
    gates = context.student.gates
    assert gates is not None
    for name, values in scores.items():
        gates.log_alpha[name].copy_(values)


__all__ = ["select"]
