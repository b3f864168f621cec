"""How many units must go: the budget in parameters of the whole base model (method, section 3, "ours").

Counting is done from the config alone, so a plan is exact before anything is downloaded or trained.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import ceil, prod
from typing import Any

from ..arch import Architecture, Shape, Structure
from ..errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What a uniform layout keeps and removes.

    Args:
        keep: units kept in every layer, by structure.
        total_units: units in every layer before.
        params_per_unit: base parameters that go with one unit.
        base_params: parameters of the whole base, embeddings included, tied weights counted once.
        target_params: `ceil(global_sparsity * base_params)`.
        removed_params: parameters physically gone; `target_params <= removed_params < target_params + step_params`.
        step_params: one step of the layout: `multiple_of` neurons (or one group) in every layer.
    """

    keep: dict[str, int]
    total_units: dict[str, int]
    params_per_unit: dict[str, int]
    base_params: int
    target_params: int
    removed_params: int
    step_params: int

    @property
    def global_sparsity(self) -> float:
        return self.removed_params / self.base_params

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"global_sparsity": self.global_sparsity}


def linear_shapes(shape: Shape) -> dict[str, tuple[int, int]]:
    """`(out, in)` features of the linear modules of one decoder layer."""
    query, kv = shape.query_heads * shape.head_dim, shape.kv_heads * shape.head_dim
    return {
        "self_attn.q_proj": (query, shape.hidden),
        "self_attn.k_proj": (kv, shape.hidden),
        "self_attn.v_proj": (kv, shape.hidden),
        "self_attn.o_proj": (shape.hidden, query),
        "mlp.gate_proj": (shape.intermediate, shape.hidden),
        "mlp.up_proj": (shape.intermediate, shape.hidden),
        "mlp.down_proj": (shape.hidden, shape.intermediate),
    }


def count_parameters(arch: Architecture, shape: Shape, config: Mapping[str, Any]) -> int:
    """Parameters of the base: embeddings (tied counted once), layers with their biases and norms, final norm."""
    return sum(prod(size) for size in weight_shapes(arch, shape, config).values())


def weight_shapes(arch: Architecture, shape: Shape, config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Every tensor that a checkpoint of this config must hold, with its shape."""
    vocabulary = (int(config["vocab_size"]), shape.hidden)
    found: dict[str, tuple[int, ...]] = {f"{arch.embeddings}.weight": vocabulary, arch.final_norm: (shape.hidden,)}
    if not config.get("tie_word_embeddings", arch.ties_by_default):
        found[f"{arch.head}.weight"] = vocabulary
    for index in range(shape.num_layers):
        prefix = arch.layer(index)
        found |= {f"{prefix}{norm}": (int(getattr(shape, size)),) for norm, size in arch.layer_norms.items()}
        for module, (out, width) in linear_shapes(shape).items():
            found[f"{prefix}{module}.weight"] = (out, width)
            if arch.has_bias(module, config):
                found[f"{prefix}{module}.bias"] = (out,)
    return found


def unit_parameters(arch: Architecture, structure: Structure, shape: Shape, config: Mapping[str, Any]) -> int:
    """Base parameters that are cut when one unit goes: weights by row or column, and the biases of cut rows."""
    sizes = linear_shapes(shape)
    total = 0
    for cut in structure.cuts:
        out, width = sizes[cut.module]
        channels = cut.channels_per_unit(shape)
        total += channels * (width if cut.side == "out" else out)
        if cut.side == "out" and arch.has_bias(cut.module, config):
            total += channels
    return total


def plan_budget(
    arch: Architecture,
    shape: Shape,
    config: Mapping[str, Any],
    structures: Sequence[str],
    global_sparsity: float,
    multiple_of: int = 1,
) -> Budget:
    """Choose the keep counts of a uniform layout: at least the target, at most one layout step more.

    KV groups are few and coarse, so they give up the whole groups that an even share amounts to (rounded down, never the
    last one); the fine-grained structure then makes up the exact rest.

    Raises:
        UsageError: the sparsity cannot be reached, or `multiple_of` leaves no keep count; the text names the largest
            value that works.
    """
    base = count_parameters(arch, shape, config)
    target = ceil(global_sparsity * base - 1e-9)
    units = {name: arch.structures[name].num_units(shape) for name in structures}
    params = {name: unit_parameters(arch, arch.structures[name], shape, config) for name in structures}
    finest = max(structures, key=lambda name: units[name])
    grain = {name: multiple_of if name == finest and units[name] > shape.kv_heads else 1 for name in structures}
    if multiple_of > units[finest] and grain[finest] > 1:
        raise UsageError(
            f"mask.multiple_of: {multiple_of} cannot be met: a layer has {units[finest]} units of {finest}; "
            f"use a value of at most {units[finest]}."
        )
    smallest = {name: grain[name] for name in structures}
    reachable = shape.num_layers * sum((units[name] - smallest[name]) * params[name] for name in structures)
    if target > reachable:
        raise UsageError(
            f"mask.global_sparsity: {global_sparsity:g} is unreachable: with structures {list(structures)} and multiple_of "
            f"{multiple_of} at most {reachable / base:.4f} of the {base:,} parameters can go; lower it or add a structure."
        )
    keep = _keep_counts(units, params, grain, finest, target / shape.num_layers)
    removed = shape.num_layers * sum((units[name] - keep[name]) * params[name] for name in structures)
    return Budget(
        keep=keep,
        total_units=units,
        params_per_unit=params,
        base_params=base,
        target_params=target,
        removed_params=removed,
        step_params=shape.num_layers * params[finest] * grain[finest],
    )


def _keep_counts(units: dict[str, int], params: dict[str, int], grain: dict[str, int], finest: str, per_layer: float) -> dict[str, int]:
    share = per_layer / sum(units[name] * params[name] for name in units)
    keep = {name: max(1, units[name] - int(units[name] * share)) for name in units if name != finest}
    step, smallest = grain[finest], grain[finest]
    while True:
        rest = per_layer - sum((units[name] - keep[name]) * params[name] for name in keep)
        widest = units[finest] if rest <= 0 else units[finest] - ceil(rest / params[finest] - 1e-9)
        count = widest if widest == units[finest] else widest // step * step
        if count >= smallest:
            return keep | {finest: count}
        for name in keep:  # the fine structure alone cannot make up the rest: give up one more coarse unit
            if keep[name] > 1:
                keep[name] -= 1
                break
