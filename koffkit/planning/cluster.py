"""What a recipe would cost on many accelerators: the plan's own counts of operations, bytes and memory,
divided among processes, and the bytes that go over the network.

Nothing here was measured on such machines. Every figure is one of a model, whose assumptions `ASSUMPTIONS`
states.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ..arch.widths import linear_shapes
from ..checkpoint.spec import ModelSpec
from ..recipe.schema import Recipe, StageEntry
from ..recipe.training import Training
from .machine import Machine
from .plan import Plan, make_plan
from .work import FLOAT, once, step_work

Layout = Literal["copies", "sharded in a node", "sharded over all"]
RATE = "bfloat16"
MARGIN = 0.9
"""Share of an accelerator's memory that may be planned with; the rest is for fragments and the libraries'."""

FETCHED = 3
"""Layers that a process has room for beside its part of all: what came of one layer and of the next, and the
whole one that is made of it. Measured with FSDP2 and gloo."""


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Accelerators of one kind.

    Args:
        name: what they are. memory: bytes of each. machine: how fast one computes.
        in_node: bytes a second between two of a node, each way. between: of one to another node.
        per_node: how many a node has.
    """

    name: str
    memory: int
    machine: Machine
    in_node: float
    between: float
    per_node: int


H100 = Cluster(
    name="H100 80 GB (half of 989 TFLOP/s, 80 % of 3.35 TB/s)",
    memory=80_000_000_000,
    machine=Machine(operations={"bfloat16": 4.95e14}, bytes=2.7e12, call=6e-6, at_once=True),
    in_node=3.6e11,
    between=4e10,
    per_node=8,
)
RTX_4090 = Cluster(
    name="RTX 4090 24 GB (half of 165 TFLOP/s, 80 % of 1.0 TB/s)",
    memory=24_000_000_000,
    machine=Machine(operations={"bfloat16": 8.2e13}, bytes=8e11, call=6e-6, at_once=True),
    in_node=2.5e10,
    between=2.5e9,
    per_node=8,
)
ASSUMPTIONS = """\
- Operations, bytes and operators of a step, and its memory, are those of --dry-run; matrix products reach the
  rate of the table, and a step takes the larger of computing and starting operators.
- The recipe's tokens stay the same. Its sequences are divided among the processes; with more processes than
  sequences in a step the step is made larger and there are fewer of them. What that does to quality is not
  part of this.
- Layers are sharded only where the model does not fit otherwise: within a node if it fits there, else over
  all. Embeddings, head, gates, memories and their optimiser states are whole in every process.
- Sharded layers are fetched for the teacher, for the student and for the gradients; fetching and computing
  overlap.
- Gradients of gates and of the memories in a step are added up in float32 over all processes, after the step,
  not overlapped.
- Stragglers, reading of text, checkpoints, evaluate, route and the start of processes are left out."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """One recipe on a number of accelerators.

    Args:
        gpus: how many. layout: how the base lies on them. fits: whether it does.
        sequences: of a step on one accelerator, at most. steps: of all stages together.
        memory: bytes that one needs. computing, fetching, adding: seconds of a step, on average.
        seconds: of all training steps. utilisation: share of the assumed rate that the operations reach.
    """

    gpus: int
    layout: Layout
    fits: bool
    sequences: int
    steps: int
    memory: int
    computing: float
    fetching: float
    adding: float
    seconds: float
    utilisation: float


def estimate(recipe: Recipe, spec: ModelSpec, cluster: Cluster, gpus: int) -> Estimate:
    """The first layout in which the recipe fits; if none does, the last one.

    Args:
        recipe: the recipe. spec: its base. cluster: what it runs on.
        gpus: how many of them.
    """
    groups: dict[Layout, int] = {"copies": 1, "sharded in a node": min(gpus, cluster.per_node)}
    groups["sharded over all"] = gpus
    for layout, group in groups.items():
        found = _estimate(recipe, spec, cluster, gpus, layout, group)
        if found.fits:
            break
    return found


def local(recipe: Recipe, gpus: int) -> Recipe:
    """The recipe as one of `gpus` processes has it: its share of the sequences of a step."""
    accumulated = recipe.train.gradient_accumulation
    stages = []
    for stage in recipe.stages:
        options = stage.options
        if isinstance(options, Training):
            share = math.ceil(options.batch_size * accumulated / gpus)
            at_once = min(share, options.batch_size)
            options = options.model_copy(update={"batch_size": at_once})
            stage = stage.model_copy(update={stage.name: options})
        stages.append(stage)
    given = recipe.distill.retention_batch_size
    retention = None if given is None else min(given, max(_batches(stages), default=1))
    distill = recipe.distill.model_copy(update={"retention_batch_size": retention})
    return recipe.model_copy(update={"stages": stages, "distill": distill})


def _batches(stages: Sequence[StageEntry]) -> list[int]:
    return [stage.options.batch_size for stage in stages if isinstance(stage.options, Training)]


def layer_bytes(recipe: Recipe, spec: ModelSpec) -> int:
    """Bytes of the matrices of all layers, which are what is sharded."""
    width = 2 if recipe.base.dtype != "float32" else FLOAT
    return width * spec.num_layers * sum(out * inner for out, inner in linear_shapes(spec.shape).values())


def memory_of(own: Recipe, spec: ModelSpec, group: int) -> int:
    """Bytes that one process needs.

    Args:
        own: the recipe as one process has it. spec: its base.
        group: how many divide the layers among them; 1: each has all.
    """
    layers = layer_bytes(own, spec)
    kept = layers if group == 1 else layers / group + FETCHED * layers / spec.num_layers
    return round(make_plan(own, spec).peak_memory_bytes - layers + kept)


def _estimate(
    recipe: Recipe, spec: ModelSpec, cluster: Cluster, gpus: int, layout: Layout, group: int
) -> Estimate:
    own = local(recipe, gpus)
    plan = make_plan(own, spec)
    layers, memory = layer_bytes(recipe, spec), memory_of(own, spec, group)
    speed = cluster.between if group > cluster.per_node else cluster.in_node
    gathers = 3 * (group > 1) * layers * (group - 1) / group / speed
    steps, total, work = 0, 0.0, 0.0
    sums = [0.0, 0.0, 0.0]
    for stage, one in zip(recipe.stages, own.stages, strict=True):
        if not isinstance(stage.options, Training) or not isinstance(one.options, Training):
            continue
        sequences = stage.options.batch_size * recipe.train.gradient_accumulation
        passes = math.ceil(sequences / gpus / one.options.batch_size)
        count = math.ceil(stage.options.max_steps * sequences / max(sequences, gpus))
        share = step_work(once(own), spec, one.options, cached=False)
        computing, fetching = passes * cluster.machine.seconds(share, RATE), passes * gathers
        adding = _adding(plan, spec, cluster, gpus)
        for place, part in enumerate((computing, fetching, adding)):
            sums[place] += count * part
        steps, total = steps + count, total + count * (max(computing, fetching) + adding)
        work += count * passes * share.operations
    peak = cluster.machine.operations[RATE]
    return Estimate(
        gpus=gpus,
        layout=layout,
        fits=memory <= MARGIN * cluster.memory,
        sequences=max(_batches(own.stages), default=0),
        steps=steps,
        memory=memory,
        computing=sums[0] / max(steps, 1),
        fetching=sums[1] / max(steps, 1),
        adding=sums[2] / max(steps, 1),
        seconds=total,
        utilisation=work / total / peak if total else 0.0,
    )


def _adding(plan: Plan, spec: ModelSpec, cluster: Cluster, gpus: int) -> float:
    """Seconds to add up, in a ring, the gradients of a step over all processes: of gates and one memory."""
    gates = sum(plan.budget.total_units.values()) * len(plan.budget.layers or range(spec.num_layers))
    speed = cluster.between if gpus > cluster.per_node else cluster.in_node
    return 2 * (gpus - 1) / gpus * FLOAT * (gates + plan.memory_params_training) / speed
