"""How many neurons a memory gives back to the backbone."""

from __future__ import annotations

from ..checkpoint.spec import ModelSpec
from ..errors import UsageError
from ..method.budget import Budget
from ..recipe.learning import RestoredNeurons
from ..recipe.schema import Recipe
from ..recipe.training import Training

STRUCTURE = "mlp_neuron"
INDEX_BYTES = 8
"""Of a neuron's place in its layer."""


def parameters_of_neuron(spec: ModelSpec) -> int:
    """Weights of one neuron: its rows of gate and up with their biases, its column of down."""
    biases = sum(spec.arch.has_bias(f"mlp.{name}", spec.config) for name in ("gate_proj", "up_proj"))
    return 3 * spec.shape.hidden + biases


def restored_neurons(wanted: RestoredNeurons, spec: ModelSpec, itemsize: int) -> int:
    """Neurons of one memory, over all layers.

    Args:
        wanted: the recipe's `memory.neurons`.
        spec: the base.
        itemsize: bytes of one of its weights, as they are stored.
    """
    if wanted.count is not None:
        return wanted.count * spec.num_layers
    assert wanted.bytes is not None
    total = wanted.bytes // (parameters_of_neuron(spec) * itemsize + INDEX_BYTES)
    return total if wanted.layout == "ragged" else total // spec.num_layers * spec.num_layers


def choice_learned(recipe: Recipe) -> Training | None:
    """The steps of stage `restore`, all domains' together, as those of a stage that trains; None: the choice
    is not learned."""
    for stage in recipe.stages:
        steps = getattr(stage.options, "learning_steps", 0)
        if steps:
            total = steps * len(recipe.domain_names)
            return Training(max_steps=total, batch_size=stage.options.batch_size)
    return None


def check_neurons(recipe: Recipe, spec: ModelSpec, budget: Budget, itemsize: int) -> None:
    """Refuse a `memory.neurons` that the mask cannot serve.

    Args:
        recipe: the recipe.
        spec: the base.
        budget: what the mask removes.
        itemsize: bytes of one of the base's weights, as they are stored.

    Raises:
        UsageError: with the field and the remedy.
    """
    wanted = recipe.memory.neurons
    if wanted is None:
        return
    structures = recipe.mask.structure_names
    if STRUCTURE not in structures:
        raise UsageError(
            f"memory.neurons: the mask removes none (mask.structures: {', '.join(structures)}); "
            f"add {STRUCTURE} there, or leave memory.neurons out."
        )
    if wanted.layout == "uniform" and recipe.mask.layout != "uniform":
        raise UsageError(
            f"memory.neurons.layout: uniform, but layers lose different numbers of neurons with mask.layout "
            f"{recipe.mask.layout}; set memory.neurons.layout to ragged."
        )
    count = restored_neurons(wanted, spec, itemsize)
    layers = len(budget.layers or range(spec.num_layers))
    gone = (budget.total_units[STRUCTURE] - budget.keep[STRUCTURE]) * layers
    if not 0 < count <= gone:
        field = "count" if wanted.count is not None else "bytes"
        one = parameters_of_neuron(spec) * itemsize + INDEX_BYTES
        least = spec.num_layers if wanted.layout == "uniform" else 1
        raise UsageError(
            f"memory.neurons.{field}: {getattr(wanted, field):,} means {count:,} neurons of {one:,} bytes; "
            f"the mask removes {gone:,}, and at least {least:,} must come back. Set {field} between them, or "
            "raise mask.global_sparsity."
        )
