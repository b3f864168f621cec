"""The most memory that a run needs: what is there all the time, and the stage that takes most beside it.

Legend: D hidden, F inputs of a module, T tokens.
"""

from __future__ import annotations

import math
from typing import Any

from ..arch.weights import vocab_size
from ..checkpoint.spec import ModelSpec
from ..method.budget import Budget
from ..recipe.schema import Recipe
from ..recipe.training import Training
from .work import trained_backbone

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
LIBRARIES = 450_000_000
"""Bytes that Python, torch and transformers take before anything is loaded."""
TRAINED = 16
"""Bytes of a parameter that trains: itself in float32, its gradient, AdamW's two moments."""
HIDDEN_KEPT, INNER_KEPT = 10, 5
"""Vectors of the hidden and of the intermediate size that a layer keeps for the backward pass, a token."""
SLOPES = 2
"""Further ones of the intermediate size, where a selector takes the slopes of all gates."""
BY_SLOPES = ("taylor", "fisher", "sensitivity", "learned")
"""Selectors, and ways to rank neurons, that need a backward pass."""
STREAMS_KEPT = 5
"""Hidden states of all its text that a repair holds: of two models, and what goes in and out of a layer."""
HOLES = 0.4
"""Part of what training holds for the backward pass that glibc keeps on a CPU beside it: torch asks for
aligned memory, and the room of a tensor rarely fits the next one of its size. With it the plan is .98 to 1.04
of the peak of eleven runs of 0.6 to 1.9 GB, four of which set it, without it .82 to .99."""
MOMENTS = 40
"""Bytes a repair takes for each of the F * (F + D) moments of a text: its sums in float32, to fit and to
check, their means in float64, the mixture with the others, and what is solved."""


def peak_memory(recipe: Recipe, budget: Budget, spec: ModelSpec, memory: int) -> int:
    """Bytes: libraries, weights, what trains with two AdamW moments and gradients, and the largest of what
    training, one-shot selection and a repair hold beside them. With `train.page_memories` those of the device
    that computes, where one memory trains at a time.

    Args:
        recipe: the recipe. budget: its budget. spec: its base.
        memory: parameters of one memory in training.
    """
    gates = sum(count * spec.shape.num_layers for count in budget.total_units.values())
    shared, memories = gates + trained_backbone(recipe, spec), memory * len(recipe.domain_names)
    always = LIBRARIES + budget.base_params * BYTES[recipe.base.dtype] + TRAINED * shared
    elsewhere = max(_selecting(recipe, spec), _repairing(recipe, spec))
    if recipe.train.page_memories:
        training = TRAINED * memory + _training(recipe, spec)
        return always + max(training, BYTES["float32"] * memories + elsewhere)
    return always + TRAINED * memories + max(_training(recipe, spec), elsewhere)


def held_by_heap(recipe: Recipe, spec: ModelSpec) -> int:
    """Bytes that a process on a CPU takes beyond `peak_memory`, which an accelerator does not and `--shard`
    avoids."""
    training, others = _training(recipe, spec), max(_selecting(recipe, spec), _repairing(recipe, spec))
    return max(round((1 + HOLES) * training), others) - max(training, others)


def _width(recipe: Recipe) -> int:
    return 4 if recipe.train.precision == "no" and recipe.base.dtype == "float32" else 2


def _backward(recipe: Recipe, spec: ModelSpec, tokens: int, more: int = 0) -> int:
    """What all layers keep for the backward pass of so many tokens, and a chunk of logits of student,
    teacher and gradient."""
    shape, width = spec.shape, _width(recipe)
    layer = tokens * (HIDDEN_KEPT * shape.hidden + (INNER_KEPT + more) * shape.intermediate) * width
    kept = (
        layer + shape.num_layers * tokens * shape.hidden * width
        if recipe.train.gradient_checkpointing and not more
        else layer * shape.num_layers
    )
    return kept + 3 * min(tokens, recipe.distill.chunk_tokens) * vocab_size(spec.config) * 4


def _training(recipe: Recipe, spec: ModelSpec) -> int:
    batches = [stage.options.batch_size for stage in recipe.stages if isinstance(stage.options, Training)]
    batches.append(recipe.distill.retention_batch_size or 1)
    return _backward(recipe, spec, max(batches) * recipe.sequence_length)


def _selecting(recipe: Recipe, spec: ModelSpec) -> int:
    batches = [_rows_with_slopes(stage.options) for stage in recipe.stages]
    return _backward(recipe, spec, max(batches) * recipe.sequence_length, SLOPES) if any(batches) else 0


def _rows_with_slopes(options: Any) -> int:
    """Sequences of a backward pass of `select_masks` or `restore`; 0: of another stage, or none is made."""
    way = getattr(options, "selector", getattr(options, "score", None))
    return int(options.batch_size) if way in BY_SLOPES else 0


def _repairing(recipe: Recipe, spec: ModelSpec) -> int:
    mask, shape = recipe.mask, spec.shape
    if mask.repair not in ("bias", "least_squares"):
        return 0
    texts = len(recipe.domain_names) + (recipe.retention is not None)
    sequences = texts * math.ceil(mask.repair_tokens / recipe.sequence_length / texts)
    hidden = STREAMS_KEPT * sequences * recipe.sequence_length * shape.hidden * _width(recipe)
    read = shape.intermediate if "mlp_neuron" in mask.structure_names else shape.hidden
    apart = texts if recipe.repairs_with_neurons else 1
    return hidden + MOMENTS * apart * read * (read + shape.hidden)
