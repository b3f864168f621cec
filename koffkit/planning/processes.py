"""What one of several processes needs, and how long they take together: `koffkit compress --num-processes N
--dry-run`. From the counts of `cluster`, and the measured speed of this machine."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from ..checkpoint.spec import ModelSpec
from ..recipe.schema import Recipe
from ..recipe.training import Training
from .cluster import local, memory_of
from .forecast import Tokens, cached_share, forecast_of
from .machine import Machine
from .peak import BYTES, LIBRARIES, held_by_heap
from .plan import make_plan
from .shares import require_divisible
from .work import once, step_work


@dataclass(frozen=True, kw_only=True)
class Shared:
    """A run in several processes.

    Args:
        processes: how many. sharded: whether they divide the base's layers among them.
        sequences: that one has at once, at most. peak_memory: bytes that one needs.
        seconds: by stage, without adding up gradients and fetching layers; None where it is not known.
    """

    processes: int
    sharded: bool
    sequences: int
    peak_memory: int
    seconds: dict[str, float | None]


def shared_run(
    recipe: Recipe, spec: ModelSpec, machine: Machine | None, tokens: Tokens, processes: int, *, shard: bool
) -> Shared:
    """Plan a run in several processes.

    Args:
        recipe: the recipe. spec: its base. machine: this one; None: its speed is not known.
        tokens: of the text. processes: how many. shard: divide the base's layers among them.

    Raises:
        UsageError: the processes cannot divide a step, or `shard` the weights that train.
    """
    require_divisible(recipe, processes, shard=shard)
    own = local(recipe, processes)
    sizes = [stage.options.batch_size for stage in own.stages if isinstance(stage.options, Training)]
    return Shared(
        processes=processes,
        sharded=shard,
        sequences=max(sizes, default=0),
        peak_memory=_peak(own, spec, machine, processes, shard),
        seconds={stage.name: None for stage in recipe.stages}
        if machine is None
        else _seconds(recipe, own, spec, _part(machine, processes), tokens, processes),
    )


def _peak(own: Recipe, spec: ModelSpec, machine: Machine | None, processes: int, shard: bool) -> int:
    """Bytes of one process, of the CPU's memory where no accelerator is known."""
    training = memory_of(own, spec, processes if shard else 1)
    if machine is not None and machine.at_once:
        return training
    return max(training if shard else training + held_by_heap(own, spec), _loading(own, spec))


def _loading(own: Recipe, spec: ModelSpec) -> int:
    """Bytes while the base is read in another type than it is stored in: both, for then it is not mapped."""
    plan = make_plan(own, spec)
    whole = plan.budget.base_params * BYTES[own.base.dtype]
    return LIBRARIES + whole + plan.base_bytes if plan.base_bytes != whole else 0


def _part(machine: Machine, processes: int) -> Machine:
    """The speed of each process: a CPU is divided among them, accelerators are one for each."""
    if machine.at_once:
        return machine
    operations = {dtype: rate / processes for dtype, rate in machine.operations.items()}
    return replace(machine, operations=operations, bytes=machine.bytes / processes)


def _seconds(
    recipe: Recipe, own: Recipe, spec: ModelSpec, machine: Machine, tokens: Tokens, processes: int
) -> dict[str, float | None]:
    dtype = "bfloat16" if recipe.train.precision == "bf16" else recipe.base.dtype
    seconds = forecast_of(recipe, spec, make_plan(recipe, spec), machine, tokens).seconds  # not divided
    known = 0.0
    for stage, one in zip(recipe.stages, own.stages, strict=True):
        if not isinstance(stage.options, Training) or not isinstance(one.options, Training):
            continue
        share, known = cached_share(recipe, stage.options, tokens, known)
        sequences = stage.options.batch_size * recipe.train.gradient_accumulation
        passes = math.ceil(sequences / processes / one.options.batch_size)
        ways = (step_work(once(own), spec, one.options, cached=cached) for cached in (False, True))
        new, again = (passes * machine.seconds(work, dtype) for work in ways)
        seconds[stage.name] = stage.options.max_steps * ((1 - share) * new + share * again)
    return seconds
