"""Gates in a model: one `log_alpha` per removable unit, and the hooks through which gate values act (method,
sections 2 and 3).

A gate multiplies after the LoRA sum: the input of the module that consumes its unit, or the output of the
module that makes it. The structure's declaration alone says which.

Legend: L layers, U units of a structure in one layer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..arch import Architecture, Cut
from ..checkpoint.spec import ModelSpec
from ..method import gates
from ..method.budget import Budget
from ..method.projection import project

GateValues = Mapping[str, Tensor]


def gate_points(arch: Architecture, structures: Sequence[str], placement: str) -> dict[str, list[str]]:
    """Names of the gates of each structure: one at its consumer or, with placement `paper`, those of the
    paper.

    Args:
        arch: the base's architecture.
        structures: names of the structures to prune.
        placement: `consumer`, or `paper`.
    """
    points = {}
    for name in structures:
        own, *paper = arch.structures[name].gate_points()
        points[name] = paper if placement == "paper" and paper else [own]
    return points


class Gates(nn.Module):
    """`log_alpha[gate]` is [L, U]. A unit with several gates is removed when any of them is shut.

    Args:
        points: names of the gates of each structure, as `gate_points` gives them.
        start: the first `log_alpha`.
        layers: the layers that have gates; those of the others are always open. None: all.
    """

    def __init__(
        self,
        spec: ModelSpec,
        points: Mapping[str, list[str]],
        start: float,
        temperature: float,
        layers: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.layers = list(range(spec.shape.num_layers)) if layers is None else list(layers)
        whole = [[layer not in self.layers] for layer in range(spec.shape.num_layers)]
        self.register_buffer("whole", torch.tensor(whole), persistent=False)
        self.points, self.temperature = points, temperature
        self.heads = {name: spec.arch.structures[name].heads(spec.shape) for name in points}
        sizes = {
            gate: spec.arch.structures[name].num_units(spec.shape)
            for name, names in points.items()
            for gate in names
        }
        self.log_alpha = nn.ParameterDict(
            {gate: torch.full((spec.shape.num_layers, size), start) for gate, size in sizes.items()}
        )

    def sample(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Relaxed gates, [L, U] by gate."""
        return {
            name: self._opened(gates.sample(alpha, self.temperature, generator))
            for name, alpha in self.log_alpha.items()
        }

    def _opened(self, values: Tensor) -> Tensor:
        """Values [L, U] with ones in the layers without gates."""
        if len(self.layers) == len(values):
            return values
        return torch.where(self.get_buffer("whole"), 1.0, values)

    def active_gates(self) -> dict[str, Tensor]:
        """P(gate != 0), [L, U] by gate."""
        return {
            name: self._opened(gates.active_probability(alpha, self.temperature))
            for name, alpha in self.log_alpha.items()
        }

    def active_fraction(self) -> dict[str, Tensor]:
        """Expected active fraction of every layer, [L] by structure."""
        active = self.active_gates()
        return {
            structure: torch.stack([active[name] for name in names]).prod(0).mean(-1)
            for structure, names in self.points.items()
        }

    def scores(self) -> dict[str, Tensor]:
        """The scores by which units are kept, [L, U] by structure."""
        return {
            name: torch.stack([self.log_alpha[gate].detach() for gate in names]).amin(0)
            for name, names in self.points.items()
        }

    def hard(self, budget: Budget) -> dict[str, Tensor]:
        """The scores projected onto the budget: 0 or 1, [L, U] by structure."""
        return {name: mask.float() for name, mask in project(self.scores(), budget, self.heads).items()}

    def fixed(self, budget: Budget) -> dict[str, Tensor]:
        """The gates as they would be if learning ended now, [L, U] by structure."""
        return self.hard(budget)


class _Point:
    """One gate in all layers, as the hooks ask for it.

    Where all gates of a layer are one and none is learned, nothing is multiplied. That is found out once for
    a tensor: on a GPU the answer has to be waited for.

    Args:
        current: gives the gate values [L, U] by gate of the forward pass, or None.
        name: of the gate.
        units: the unit of each channel; None: channels are units.
    """

    def __init__(self, current: Callable[[], GateValues | None], name: str, units: Tensor | None) -> None:
        self._current, self._name = current, name
        self._units = None if units is None else {units.device: units}  # copied once to every other device
        self._known: tuple[Tensor, int] | None = None  # the tensor of which `_open` speaks, and its version
        self._open: list[bool] = []

    def of_layer(self, index: int) -> Tensor | None:
        """The gate of every channel; None: the activations stay as they are."""
        values = (self._current() or {}).get(self._name)
        if values is None or self._all_open(values, index):
            return None
        gate = values[index]
        if self._units is None:
            return gate
        if gate.device not in self._units:
            self._units[gate.device] = next(iter(self._units.values())).to(gate.device)
        return gate[self._units[gate.device]]

    def _all_open(self, values: Tensor, index: int) -> bool:
        if values.requires_grad:
            return False
        if self._known is None or self._known[0] is not values or self._known[1] != values._version:
            self._known = values, values._version
            self._open = (values == 1).all(-1).tolist()
        return self._open[index]


def register_gates(model: nn.Module, spec: ModelSpec, current: Callable[[], GateValues | None]) -> None:
    """Scale the activations at every gate point by `current()`; None, a missing gate, or a layer whose gates
    are all one leaves them unchanged.

    Call it after LoRA is injected: the hook belongs around the LoRA sum.

    Args:
        model: the transformers model.
        spec: its spec.
        current: gives the gate values [L, U] by gate of the forward pass.
    """
    for structure in spec.arch.structures.values():
        for name, cut in structure.gate_points().items():
            units = torch.from_numpy(cut.unit_of_channel(spec.shape))
            same = len(units) == structure.num_units(spec.shape) and bool(
                (units == torch.arange(len(units))).all()
            )
            point = _Point(current, name, None if same else units)
            for index in range(spec.shape.num_layers):
                module = model.get_submodule(spec.arch.layer(index) + cut.module)
                _hook(module, cut, partial(point.of_layer, index))


def _hook(module: nn.Module, cut: Cut, value: Callable[[], Tensor | None]) -> None:
    def before(_: nn.Module, inputs: tuple[Any, ...]) -> Any:
        gate = value()
        return None if gate is None else (inputs[0] * gate.to(inputs[0].dtype), *inputs[1:])

    def after(_: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Any:
        gate = value()
        return None if gate is None else output * gate.to(output.dtype)

    if cut.side == "in":
        module.register_forward_pre_hook(before)
    else:
        module.register_forward_hook(after)
