"""Timing some real steps of a training stage, for a plan that comes true."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

from ..planning.forecast import Tokens, cached_share
from .loop import DistillationLoop
from .parity import check_first_masks
from .saliency import warm_start

MOMENTS = 8
"""Bytes of AdamW's two for a parameter."""


@dataclass
class Probe:
    """What stages are timed with, and what is found beside their times.

    Args:
        steps: real steps of every training stage.
        tokens: of the text, by domain and `retention`.
        known: tokens that a teacher cache has after the stages so far.
        later: bytes that a stage takes only once every domain had its turn.
    """

    steps: int
    tokens: Tokens
    known: float = 0.0
    later: int = 0


def seconds_of(call: Callable[[], Any]) -> float:
    """How long a call takes."""
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def probe_training(loop: DistillationLoop, probe: Probe) -> float:
    """Seconds of the training of a stage, from its first step, which takes longer, and some after it.

    Args:
        loop: of the stage; what it learns in these steps stays in the student.
        probe: how many; is told what is found.
    """
    options, recipe, total = loop.options, loop.recipe, 0.0
    if loop.train_gates:
        total += seconds_of(lambda: warm_start(loop.context, options))
        total += seconds_of(lambda: check_first_masks(loop.context))
    if loop.optimizer is None or not options.max_steps:
        return total
    numbers = range(1, probe.steps + 1)
    first = seconds_of(lambda: loop._step(0))
    new = again = median(seconds_of(lambda: loop._step(number)) for number in numbers)  # noqa: B023
    if loop.context.cache is not None:
        again = median(seconds_of(lambda: loop._step(number)) for number in numbers)  # noqa: B023
    share, probe.known = cached_share(recipe, options, probe.tokens, probe.known)
    total += max(0.0, first - new) + options.max_steps * ((1 - share) * new + share * again)
    saved = 1 + (options.max_steps - 1) // recipe.train.checkpoint_every
    total += saved * seconds_of(lambda: loop.checkpoint(probe.steps))
    every = recipe.train.evaluate_every
    if every is not None:
        total += options.max_steps // every * seconds_of(lambda: loop.watch.measured())
    states = loop.optimizer.state
    waiting = [one for group in loop.groups.values() for one in group["params"] if one not in states]
    probe.later = max(probe.later, MOMENTS * sum(one.numel() for one in waiting))
    return total
