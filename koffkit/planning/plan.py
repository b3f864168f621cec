"""The plan of a run, made before any training: exact parameter counts and bytes, and estimates with their
formulas."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ..arch import Shape
from ..arch.widths import LayerWidths, linear_shapes
from ..checkpoint.spec import ModelSpec
from ..errors import UsageError
from ..hub import locate
from ..masks.convert import masks_of_counts
from ..masks.repair import check_repair
from ..masks.slicing import widths_of
from ..method.budget import Budget, check_structures, plan_budget
from ..progress import Progress
from ..recipe.learning import Learned, layers_of
from ..recipe.load import LoadedRecipe
from ..recipe.schema import Recipe
from .estimates import Net, Range, net_of, seconds_for, stage_seconds, training_tokens
from .neurons import INDEX_BYTES, check_neurons, parameters_of_neuron, restored_neurons
from .peak import BYTES, peak_memory
from .warnings import warnings_of
from .work import cache_bytes_a_token, step_operations


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Parameters are exact; memory and time are estimates.

    Args:
        base_bytes: size of the base's weights in the dtype of the checkpoint, which slicing keeps.
        backbone_bytes: size of the backbone's weights in the same dtype.
        memory_layers: layers that carry memory in training.
        num_memory_layers: layers that carry memory in the end, fewer if the placement is learned.
        memory_params: parameters of one domain's memory, at the widths of the sliced backbone.
        memory_params_training: the same at the widths of the base.
        memory_neurons: neurons that one memory gives back, over all layers.
        peak_memory_bytes: the libraries + weights + what trains (gates, memories, of the backbone copies of
            what `lr.backbone` names) with two AdamW moments and gradients + what the largest of training,
            one-shot selection and a repair holds beside them.
        seconds: from 6 * parameters * tokens operations at the throughput range of each device class.
        stage_seconds: of every stage, for the same devices; None where the text decides.
        step_operations: floating-point operations of one step of every training stage: `uncached`, and with
            a teacher cache also `cached`.
        teacher_cache_bytes: of the cache at most, if training read every token once; 0 without one.
        net: bytes on disk with all memories.
    """

    budget: Budget
    kept_per_layer: dict[str, int]
    removed_units: dict[str, int]
    base_bytes: int
    backbone_params: int
    backbone_bytes: int
    memory_layers: list[int]
    num_memory_layers: int
    memory_params: int
    memory_bytes: int
    memory_params_training: int
    memory_neurons: int
    domains: list[str]
    training_tokens: dict[str, int]
    peak_memory_bytes: int
    seconds: dict[str, Range]
    stage_seconds: dict[str, dict[str, Range] | None]
    step_operations: dict[str, dict[str, float]]
    teacher_cache_bytes: int
    net: Net
    warnings: list[str]

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"budget": self.budget.to_json()}


def check_layers(recipe: Recipe, num_layers: int) -> list[int]:
    """The layers that carry memory.

    Raises:
        UsageError: the model has no such layer.
    """
    return _named(recipe.memory_layers, num_layers)


def gated_layers(recipe: Recipe, num_layers: int) -> list[int] | None:
    """The layers that have gates; None: all.

    Raises:
        UsageError: the model has no such layer.
    """
    chosen = recipe.mask.layers
    if chosen == "all":
        return None
    return _named(lambda count: layers_of(chosen, count, "mask.layers"), num_layers)


def _named(layers: Callable[[int], list[int]], num_layers: int) -> list[int]:
    try:
        return layers(num_layers)
    except ValueError as error:
        raise UsageError(
            f"{error}; use layers 0 to {num_layers - 1}, {{upper: N}} with N <= {num_layers}, or all."
        ) from None


def budget_of(recipe: Recipe, spec: ModelSpec) -> Budget:
    """The recipe's budget for this model.

    Raises:
        UsageError: the architecture is not supported or refuses a structure, or the budget cannot be met.
    """
    mask = recipe.mask
    check_structures(spec, mask.structure_names)
    check_repair(spec, mask.structure_names, mask.repair)
    return plan_budget(
        spec,
        mask.structure_names,
        mask.global_sparsity,
        mask.multiple_of,
        mask.layout,
        gated_layers(recipe, spec.num_layers),
    )


def num_memory_layers(recipe: Recipe, spec: ModelSpec) -> int:
    """How many layers carry memory in the end.

    Raises:
        UsageError: the bytes of a learned placement are too few for one layer.
    """
    layers = len(check_layers(recipe, spec.num_layers))
    if not layers or not isinstance(recipe.memory.layers, Learned):
        return layers
    one = memory_parameters(recipe, spec, 1, budget_of(recipe, spec).keep) * BYTES["float32"]
    count = recipe.memory.layers.learned_bytes // one
    if not count:
        raise UsageError(
            f"memory.layers.learned_bytes: {recipe.memory.layers.learned_bytes:,} do not hold the memory of "
            f"one layer ({one:,} bytes); "
            "raise it, or lower lora.rank or kv.tokens."
        )
    return min(count, layers)


def plan_of(loaded: LoadedRecipe, *, progress: Progress | None = None) -> Plan:
    """The plan of a recipe, from its text and the base's `config.json` alone.

    Args:
        progress: is told when a base in a GGUF file is dequantised, which happens once.

    Raises:
        DataError: there is no such base.
        UsageError: the architecture is not supported, or the budget or the layers cannot be met.
    """
    base = loaded.recipe.base
    folder = locate(base.model, loaded.root, revision=base.revision, config_only=True, progress=progress)
    return make_plan(loaded.recipe, ModelSpec.open(folder))


def make_plan(recipe: Recipe, spec: ModelSpec) -> Plan:
    """Work out a plan from the recipe and the base's config alone.

    Raises:
        UsageError: the architecture is not supported, or the budget or the layers cannot be met.
    """
    budget = budget_of(recipe, spec)
    layers = check_layers(recipe, spec.num_layers)
    full = memory_parameters(recipe, spec, len(layers), {})
    carrying = num_memory_layers(recipe, spec)
    cut = min(carrying, sum(budget.has_gates(layer) for layer in layers))
    sliced = memory_parameters(recipe, spec, cut, budget.keep)
    sliced += memory_parameters(recipe, spec, carrying - cut, {})
    stored = _stored(recipe, spec)
    tokens = training_tokens(recipe)
    backbone = budget.base_params - budget.removed_params
    neurons = _neurons(recipe, spec, budget, stored)
    memory_bytes = sliced * 4 + neurons * (parameters_of_neuron(spec) * stored + INDEX_BYTES)
    return Plan(
        budget=budget,
        kept_per_layer=dict(budget.keep),
        removed_units={
            name: (budget.total_units[name] - kept) * len(budget.layers or range(spec.num_layers))
            for name, kept in budget.keep.items()
        },
        base_bytes=budget.base_params * stored,
        backbone_params=backbone,
        backbone_bytes=backbone * stored,
        memory_layers=layers,
        num_memory_layers=carrying,
        memory_params=sliced + neurons * parameters_of_neuron(spec),
        memory_bytes=memory_bytes,
        memory_params_training=full,
        memory_neurons=neurons,
        domains=recipe.domain_names,
        training_tokens=tokens,
        peak_memory_bytes=peak_memory(recipe, budget, spec, full),
        seconds=seconds_for(6 * budget.base_params * sum(tokens.values())),
        stage_seconds=stage_seconds(recipe, budget.base_params),
        step_operations=step_operations(recipe, spec),
        teacher_cache_bytes=cache_bytes_a_token(recipe, spec) * sum(tokens.values()),
        net=net_of(
            budget.base_params * stored,
            backbone * stored,
            memory_bytes,
            len(recipe.domain_names) if memory_bytes else 0,
        ),
        warnings=warnings_of(recipe, budget, spec),
    )


def _neurons(recipe: Recipe, spec: ModelSpec, budget: Budget, stored: int) -> int:
    """Neurons that one memory gives back."""
    check_neurons(recipe, spec, budget, stored)
    wanted = recipe.memory.neurons
    return 0 if wanted is None else restored_neurons(wanted, spec, stored)


def _stored(recipe: Recipe, spec: ModelSpec) -> int:
    """Bytes of a weight of the checkpoint."""
    named = str(spec.config.get("dtype") or spec.config.get("torch_dtype"))
    return BYTES.get(named, BYTES[recipe.base.dtype])


def memory_parameters(recipe: Recipe, spec: ModelSpec, num_layers: int, keep: Mapping[str, int]) -> int:
    """Parameters of one domain's LoRA and KV memory; with `keep`, after slicing.

    Args:
        recipe: the recipe.
        spec: the base.
        num_layers: layers that carry memory.
        keep: units kept in every layer, by structure; empty: all.
    """
    return layer_memory_parameters(recipe, spec.shape, _widths_kept(spec, keep)) * num_layers


def layer_memory_parameters(recipe: Recipe, shape: Shape, widths: LayerWidths) -> int:
    """Parameters of one domain's memory in a layer of these widths.

    Args:
        recipe: with the settings of both halves.
        shape: sizes of the base.
        widths: of the layer, cut or not.
    """
    total = 0
    if recipe.memory.lora is not None:
        sizes = linear_shapes(shape, widths)
        targets = [
            size for module, size in sizes.items() if module.rpartition(".")[2] in recipe.memory.lora.targets
        ]
        total += sum(recipe.memory.lora.rank * (out + width) for out, width in targets)
    if recipe.memory.kv is not None:
        total += widths.kv_heads * recipe.memory.kv.tokens * (widths.key_channels + widths.value_channels)
    return total


def _widths_kept(spec: ModelSpec, keep: Mapping[str, int]) -> LayerWidths:
    """The widths of a layer that keeps these counts; which units they are does not matter."""
    return widths_of(spec, masks_of_counts(spec, keep))[0]
