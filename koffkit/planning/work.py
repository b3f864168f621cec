"""What one training step has to do: operations, bytes, and operators to start. A plan states the operations;
a machine that was measured (`machine`) makes a time of all three.

Legend: T tokens of a step, D hidden, V vocabulary, K the teacher's most likely tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from .. import plugins
from ..arch.weights import vocab_size
from ..arch.widths import linear_shapes
from ..checkpoint.spec import ModelSpec
from ..masks.repair import readers
from ..recipe.learning import layers_of
from ..recipe.schema import Recipe
from ..recipe.training import Training

FLOAT = 4
STUDENT_LOGITS, TEACHER_LOGITS = 12, 6
"""How often a float32 of the logits is read or written for the loss: of the student with its gradient, of the
teacher."""
HIDDEN, INTERMEDIATE = 24, 6
"""The same of one vector of the hidden and the intermediate size, in one pass through a layer."""
LAYER_CALLS, TARGET_CALLS, STEP_CALLS = 45, 7, 250
"""Operators of one pass through a layer, of one linear module with LoRA, and of the rest of a step."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """What one step has to do.

    Args:
        operations: floating-point operations of its matrix products.
        bytes: what it reads and writes beside them, and the weights once for each pass.
        calls: operators that are started one after the other.
    """

    operations: float
    bytes: float
    calls: float


def step_work(recipe: Recipe, spec: ModelSpec, options: Training, *, cached: bool) -> Work:
    """One optimiser step of a training stage.

    Args:
        recipe: the recipe. spec: the base. options: of the stage.
        cached: what the teacher says is known, so that it is not computed.
    """
    shape, tokens = spec.shape, options.batch_size * recipe.sequence_length
    head = 2.0 * vocab_size(spec.config) * shape.hidden
    layer = 2.0 * sum(out * width for out, width in linear_shapes(shape).values())
    layer += 2.0 * recipe.sequence_length * shape.query_heads * shape.head_dim  # causal: half of T x T
    own = shape.num_layers - lowest_changed_layer(
        recipe, spec
    )  # layers that teacher and student do not share
    again = recipe.train.gradient_checkpointing
    taught = recipe.distill.loss != "cross_entropy" and not cached
    passes = shape.num_layers + own * (1 + again + taught)  # shared once; forward and backward
    heads = 2 + taught
    memory = _memory_operations(recipe, spec)
    memory += 2.0 * trained_backbone(recipe, spec) * (options.lr.backbone is not None)
    width = 2 if recipe.base.dtype != "float32" else FLOAT
    weights = (layer / 2 * passes + head / 2 * heads) * width
    logits = vocab_size(spec.config) * (STUDENT_LOGITS + TEACHER_LOGITS * taught) * FLOAT
    vectors = (HIDDEN * shape.hidden + INTERMEDIATE * shape.intermediate) * passes * width
    targets = 0 if recipe.memory.lora is None else len(recipe.memory.lora.targets)
    calls = LAYER_CALLS * passes + TARGET_CALLS * targets * own * 2 + STEP_CALLS
    times = recipe.train.gradient_accumulation
    return Work(
        operations=times * tokens * (layer * passes + head * heads + memory),
        bytes=times * (weights + tokens * (logits + vectors)),
        calls=times * calls,
    )


def once(recipe: Recipe) -> Recipe:
    """The recipe without gradient accumulation."""
    return recipe.model_copy(update={"train": recipe.train.model_copy(update={"gradient_accumulation": 1})})


def forward_work(recipe: Recipe, spec: ModelSpec, tokens: int) -> Work:
    """One pass through a model, with its logits, for measuring."""
    shape = spec.shape
    head = 2.0 * vocab_size(spec.config) * shape.hidden
    layer = 2.0 * sum(out * width for out, width in linear_shapes(shape).values())
    layer += 2.0 * recipe.sequence_length * shape.query_heads * shape.head_dim
    width = 2 if recipe.base.dtype != "float32" else FLOAT
    vectors = (HIDDEN * shape.hidden + INTERMEDIATE * shape.intermediate) * shape.num_layers * width
    return Work(
        operations=tokens * (layer * shape.num_layers + head),
        bytes=(layer * shape.num_layers + head) / 2 * width + tokens * vectors,
        calls=LAYER_CALLS * shape.num_layers,
    )


def lowest_changed_layer(recipe: Recipe, spec: ModelSpec) -> int:
    """The lowest layer with gates or memory; below it teacher and student compute the same, once."""
    count = spec.num_layers
    gated = layers_of(recipe.mask.layers, count, "mask.layers")
    return min([*gated, *recipe.memory_layers(count)], default=count)


def trained_backbone(recipe: Recipe, spec: ModelSpec) -> int:
    """Parameters of the backbone that train, at the widths of the base; 0: it is frozen."""
    training = [stage.options for stage in recipe.stages if isinstance(stage.options, Training)]
    if all(options.lr.backbone is None for options in training):
        return 0
    sizes = linear_shapes(spec.shape)
    modules = readers(spec, recipe.mask.structure_names)
    gated = layers_of(recipe.mask.layers, spec.num_layers, "mask.layers")
    return sum(math.prod(sizes[module]) for module in modules) * len(gated)


def step_operations(recipe: Recipe, spec: ModelSpec) -> dict[str, dict[str, float]]:
    """Operations of one step of every training stage: `uncached`, and with a teacher cache `cached`."""
    ways = {"uncached": False} | ({"cached": True} if recipe.distill.cache else {})
    return {
        stage.name: {
            way: step_work(recipe, spec, stage.options, cached=cached).operations
            for way, cached in ways.items()
        }
        for stage in recipe.stages
        if isinstance(stage.options, Training)
    }


def cache_bytes_a_token(recipe: Recipe, spec: ModelSpec) -> int:
    """Bytes that a teacher cache takes for a token; 0 without one."""
    loss = plugins.load(plugins.LOSSES, recipe.distill.loss, "distill.loss")
    if not recipe.distill.cache or loss.num_targets is None:
        return 0
    vocabulary = vocab_size(spec.config)
    top: int = min(loss.num_targets(recipe.distill), vocabulary - 1)
    return FLOAT + top * (2 + (2 if vocabulary <= 1 << 16 else 4))


def _memory_operations(recipe: Recipe, spec: ModelSpec) -> float:
    """For a token: forward, gradients of inputs and of weights."""
    shape, layers = spec.shape, len(recipe.memory_layers(spec.num_layers))
    total = 0.0
    if recipe.memory.lora is not None:
        targets = recipe.memory.lora.targets
        sizes = [size for name, size in linear_shapes(shape).items() if name.rpartition(".")[2] in targets]
        total += 3 * 2.0 * recipe.memory.lora.rank * sum(map(sum, sizes)) * layers
    if recipe.memory.kv is not None:
        total += 3 * 4.0 * recipe.memory.kv.tokens * shape.query_heads * shape.head_dim * layers
    return total
