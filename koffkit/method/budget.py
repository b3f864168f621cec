"""How many units to remove: the budget in parameters of the whole base model (method, section 3, "ours").

Counting is done from the config alone, so a plan is exact before anything is downloaded or trained.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from math import ceil
from typing import Any, Literal

from ..arch import Structure
from ..arch.widths import linear_shapes
from ..checkpoint.spec import ModelSpec
from ..errors import UsageError

Layout = Literal["uniform", "ragged"]


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What a layout keeps and removes.

    Args:
        layout: `uniform` (every layer keeps `keep`) or `ragged` (layers differ; `keep` is what an even share
            would be).
        keep: units kept in every layer that has gates, by structure; masked-only structures included.
        layers: the layers that have gates; None: all.
        total_units: units in every layer before.
        step_units: units of a layer that are removed together, by structure (`Structure.step_units`).
        params_per_unit: base parameters removed with one unit; 0 for a masked-only structure.
        base_params: parameters of the whole base, embeddings included, tied weights counted once.
        target_params: `ceil(global_sparsity * base_params)`.
        removed_params: parameters physically removed; `target_params <= removed_params < target_params +
            step_params`. For `ragged` it is the target until the masks are learned.
        step_params: one step of the layout, in every layer (`uniform`) or in one (`ragged`).
    """

    layout: Layout = "uniform"
    layers: list[int] | None = None
    keep: dict[str, int]
    total_units: dict[str, int]
    step_units: dict[str, int]
    params_per_unit: dict[str, int]
    base_params: int
    target_params: int
    removed_params: int
    step_params: int

    @property
    def global_sparsity(self) -> float:
        return self.removed_params / self.base_params

    @property
    def removable(self) -> list[str]:
        """Structures whose removal removes parameters."""
        return [name for name, params in self.params_per_unit.items() if params]

    def has_gates(self, layer: int) -> bool:
        return self.layers is None or layer in self.layers

    def removed_by(self, kept: Mapping[str, Sequence[int]]) -> int:
        """Parameters removed with these counts of kept units per layer, by structure."""
        return sum(
            (self.total_units[name] - count) * self.params_per_unit[name]
            for name, counts in kept.items()
            for count in counts
        )

    def realised(self, kept: Mapping[str, Sequence[int]]) -> Budget:
        """The budget once the masks are known."""
        return replace(self, removed_params=self.removed_by(kept))

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"global_sparsity": self.global_sparsity}


def unit_parameters(spec: ModelSpec, structure: Structure) -> int:
    """Base parameters that are removed with one unit: rows or columns of weights, and the biases of removed
    rows."""
    sizes = linear_shapes(spec.shape)
    total = 0
    for cut in structure.cuts:
        out, width = sizes[cut.module]
        channels = cut.channels_per_unit(spec.shape)
        total += channels * (width if cut.side == "out" else out)
        if cut.side == "out" and spec.arch.has_bias(cut.module, spec.config):
            total += channels
    return total


def check_structures(spec: ModelSpec, names: Sequence[str]) -> None:
    """Check that these structures can be removed together from this family.

    Raises:
        UsageError: one is refused by the family or needs modules that it does not have, two cut the same
            weights, or none removes parameters.
    """
    arch = spec.arch
    for name in names:
        if name in arch.refuses or name not in arch.structures:
            reason = arch.refuses.get(name, "it needs modules that this family does not have")
            raise UsageError(f"mask.structures: {name} cannot be removed from {arch.model_type}: {reason}.")
    for first, second in combinations(names, 2):
        shared = arch.structures[first].clash(arch.structures[second])
        if shared is not None:
            raise UsageError(
                f"mask.structures: {first} and {second} overlap (both cut {shared.module}); choose one of "
                "the two."
            )
    if all(not arch.structures[name].cuts for name in names):
        others = [name for name, structure in arch.structures.items() if structure.cuts]
        raise UsageError(
            f"mask.structures: {', '.join(names)} is masked only and removes no parameters; add one of "
            f"{', '.join(name for name in others if name not in arch.refuses)}."
        )


def plan_budget(
    spec: ModelSpec,
    structures: Sequence[str],
    global_sparsity: float,
    multiple_of: int = 1,
    layout: Layout = "uniform",
    layers: Sequence[int] | None = None,
) -> Budget:
    """Choose how many units a uniform layout keeps: it removes at least the target, at most one step more.

    Coarse structures give up the whole steps of an even share (rounded down, never the last one); that with
    the most steps makes up the exact rest. Masked-only structures lose the same share of their units.

    Args:
        structures: names of the structures to prune.
        global_sparsity: share of the base's parameters to remove, in (0, 1).
        multiple_of: kept channels are a multiple of this. layers: those with gates; None: all.

    Raises:
        UsageError: the structures do not go together, or a number cannot be met.
    """
    check_structures(spec, structures)
    num_layers = spec.shape.num_layers if layers is None else len(layers)
    known = {name: spec.arch.structures[name] for name in structures}
    units = {name: structure.num_units(spec.shape) for name, structure in known.items()}
    params = {name: unit_parameters(spec, structure) for name, structure in known.items()}
    step = {name: structure.step_units(spec.shape, multiple_of) for name, structure in known.items()}
    _check_steps(multiple_of, step, units)
    removable = [name for name in structures if params[name]]
    target = ceil(global_sparsity * spec.num_parameters - 1e-9)
    reachable = num_layers * sum((units[name] - step[name]) * params[name] for name in removable)
    if target > reachable:
        raise _unreachable(spec, structures, global_sparsity, multiple_of, num_layers, reachable)
    finest = max(removable, key=lambda name: units[name] // step[name])
    keep = _keep_counts({name: units[name] for name in removable}, params, step, finest, target / num_layers)
    removed = num_layers * sum((units[name] - keep[name]) * params[name] for name in removable)
    fraction = removed / num_layers / sum(units[name] * params[name] for name in removable)
    keep |= {name: units[name] - int(units[name] * fraction) for name in structures if not params[name]}
    return Budget(
        layout=layout,
        layers=None if layers is None else list(layers),
        keep={name: keep[name] for name in structures},
        total_units=units,
        step_units=step,
        params_per_unit=params,
        base_params=spec.num_parameters,
        target_params=target,
        removed_params=removed if layout == "uniform" else target,
        step_params=params[finest] * step[finest] * (num_layers if layout == "uniform" else 1),
    )


def _unreachable(
    spec: ModelSpec,
    structures: Sequence[str],
    global_sparsity: float,
    multiple_of: int,
    num_layers: int,
    reachable: int,
) -> UsageError:
    some = "" if num_layers == spec.shape.num_layers else f" in {num_layers} layers"
    return UsageError(
        f"mask.global_sparsity: {global_sparsity:g} is unreachable: with structures {list(structures)}{some} "
        f"and multiple_of {multiple_of} at most {reachable / spec.num_parameters:.4f} of the "
        f"{spec.num_parameters:,} parameters can go; lower it or add a structure"
        f"{' or layers' if some else ''}."
    )


def _check_steps(multiple_of: int, step: Mapping[str, int], units: Mapping[str, int]) -> None:
    for name, count in units.items():
        if step[name] > count:
            largest = count * multiple_of // step[name]
            raise UsageError(
                f"mask.multiple_of: {multiple_of} cannot be met: a layer has {count} units of {name}; use a "
                f"value of at most {largest}."
            )


def _keep_counts(
    units: dict[str, int], params: dict[str, int], step: dict[str, int], finest: str, per_layer: float
) -> dict[str, int]:
    fraction = per_layer / sum(units[name] * params[name] for name in units)
    steps = {name: units[name] // step[name] for name in units}
    keep = {
        name: max(1, steps[name] - int(steps[name] * fraction)) * step[name]
        for name in units
        if name != finest
    }
    while True:
        rest = per_layer - sum((units[name] - keep[name]) * params[name] for name in keep)
        widest = units[finest] if rest <= 0 else units[finest] - ceil(rest / params[finest] - 1e-9)
        count = widest if widest == units[finest] else widest // step[finest] * step[finest]
        if count >= step[finest]:
            return keep | {finest: count}
        for name in keep:  # the fine structure alone cannot make up the rest: give up one more coarse unit
            if keep[name] > step[name]:
                keep[name] -= step[name]
                break
