"""What a selector is given, what it answers, and what several of them share.

Legend: L layers, U units of a structure in one layer, C channels that a gate multiplies, B batch,
T tokens, N = B * T.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..arch import Cut
from ..method.budget import Budget
from ..model.batch import Batch
from ..model.linear import plain_weight
from ..model.student import Student
from ..recipe.learning import Mask

Saliencies = dict[str, Tensor]
"""[L, U] by gate."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """The unpruned model and the text that it is shown.

    Args:
        student: with all gates off it is the unpruned model.
        batches: sequences, as often as it is called.
        autocast: the precision of forward passes.
        seed: of whatever a selector draws.
        chunk_tokens: tokens whose logits may exist at one time.
        warn: called with a sentence for the user.
    """

    student: Student
    batches: Callable[[], Iterable[Batch]]
    autocast: Callable[[], AbstractContextManager[Any]]
    seed: int
    chunk_tokens: int
    warn: Callable[[str], None] = lambda text: None

    @property
    def sizes(self) -> dict[str, torch.Size]:
        """The shape [L, U] of every gate that the recipe asks for."""
        gates = self.student.gates
        return {} if gates is None else {name: alpha.shape for name, alpha in gates.log_alpha.items()}

    def zeros(self) -> Saliencies:
        """A sum of nothing for every gate."""
        device = self.student.head.device
        return {name: torch.zeros(size, device=device) for name, size in self.sizes.items()}


class Selector(ABC):
    """One way to tell which units go.

    Attributes:
        any_sparsity: the scores are the same however much is to go, so that runs of a study share them.
        additive: a score estimates a loss, so that those of several texts can be added.
    """

    any_sparsity: ClassVar[bool] = False
    additive: ClassVar[bool] = False

    def check(self, mask: Mask) -> None:
        """Refuse masks that the selector cannot choose; the default accepts all.

        Raises:
            UsageError: with the field and the remedy.
        """
        return

    @abstractmethod
    def saliency(self, text: Calibration) -> Saliencies:
        """How much the unpruned model needs each unit: at least 0, comparable within a layer.

        Args:
            text: see `Calibration`.
        """

    def scores(self, text: Calibration, budget: Budget) -> Saliencies:
        """The same, comparable across layers and structures, as layout `ragged` needs it. By default per
        parameter that goes with a unit.

        Args:
            text: see `Calibration`.
            budget: says how many parameters those are.
        """
        return per_parameter(self.saliency(text), budget)


class ChannelSelector(Selector):
    """A selector that rates channels one by one.

    Across layers and structures it is compared as in FLAP (An et al. 2024, arXiv 2312.11983):
    the channels of a layer are standardised, and those of a unit averaged.
    """

    @abstractmethod
    def channels(self, text: Calibration) -> Saliencies:
        """The saliency of every channel, [L, C] by gate."""

    def saliency(self, text: Calibration) -> Saliencies:
        """The sum over the channels of a unit."""
        return by_unit(text, self.channels(text))

    def scores(self, text: Calibration, budget: Budget) -> Saliencies:
        tables = {name: standardised(table) for name, table in self.channels(text).items()}
        sizes = by_unit(text, {name: torch.ones_like(table) for name, table in tables.items()})
        return {name: total / sizes[name] for name, total in by_unit(text, tables).items()}


def standardised(table: Tensor) -> Tensor:
    """Every row of a table [L, C] with mean 0 and standard deviation 1; a row without deviation is 0."""
    std = table.std(-1, keepdim=True, correction=min(1, table.shape[-1] - 1)).clamp_min(1e-12)
    return (table - table.mean(-1, keepdim=True)) / std


def per_parameter(saliencies: Mapping[str, Tensor], budget: Budget) -> Saliencies:
    """Saliencies divided by the parameters that go with a unit; of masked-only structures as they are."""
    return {
        name: values / (budget.params_per_unit[name.partition("@")[0]] or 1)
        for name, values in saliencies.items()
    }


def by_unit(text: Calibration, tables: Mapping[str, Tensor]) -> Saliencies:
    """Sums over the channels of each unit: [L, C] to [L, U]."""
    sums = text.zeros()
    for place in gate_places(text.student, sums):
        sums[place.gate][place.layer].index_add_(0, place.units, tables[place.gate][place.layer])
    return sums


@dataclass(frozen=True, eq=False)
class GatePlace:
    """Where a gate acts in one layer.

    Attributes:
        gate: its name.
        layer: index of the layer.
        point: the tensor dimension that it multiplies.
        units: the unit of every channel, [C].
        module: the linear module, wrapped by peft or not.
    """

    gate: str
    layer: int
    point: Cut
    units: Tensor
    module: nn.Module

    @property
    def weight(self) -> Tensor:
        """The module's weight [out, in]."""
        return plain_weight(self.module)

    def values(self, inputs: tuple[Any, ...], output: Any) -> Tensor:
        """What the gate multiplies, [B, T, C], of a call of the module."""
        values: Tensor = inputs[0] if self.point.side == "in" else output
        return values


def gate_places(student: Student, gates: Iterable[str]) -> list[GatePlace]:
    """Every layer's places of these gates."""
    arch, shape = student.spec.arch, student.spec.shape
    points = {
        name: point
        for structure in arch.structures.values()
        for name, point in structure.gate_points().items()
    }
    device, places = student.head.device, []
    for name in gates:
        units = torch.from_numpy(points[name].unit_of_channel(shape)).to(device)
        for layer in range(shape.num_layers):
            module = student.model.get_submodule(arch.layer(layer) + points[name].module)
            places.append(GatePlace(name, layer, points[name], units, module))
    return places


@contextmanager
def watching(places: Sequence[GatePlace], receive: Callable[[GatePlace, Tensor], None]) -> Iterator[None]:
    """Show what each gate multiplies, [B, T, C], to `receive` whenever its module is called in the block."""

    def hook(place: GatePlace, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        receive(place, place.values(inputs, output))

    handles = [place.module.register_forward_hook(partial(hook, place)) for place in places]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def show_text(text: Calibration, receive: Callable[[GatePlace, Tensor], None]) -> None:
    """Run all batches through the unpruned model, and show `receive` what the gates would multiply,
    [N, C]."""

    def flattened(place: GatePlace, values: Tensor) -> None:
        receive(place, values.flatten(0, -2))

    with watching(gate_places(text.student, text.sizes), flattened):
        for batch in text.batches():
            with text.autocast():
                text.student(batch.ids, positions=batch.positions)
