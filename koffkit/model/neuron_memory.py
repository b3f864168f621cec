"""Neurons that a memory gives back to the MLPs of a backbone (ours).

A memory holds, for some layers, neurons that the mask removed: their rows of gate and up, their columns of
down. Their output is added to that of the layer's MLP, which is what the MLP would compute with these neurons
put back among its own.

Legend: B rows, T tokens, D hidden, n neurons of one layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .groups import Groups
from .kv_attention import transformer
from .per_call import of_this_call

_SLOT, _READY = "koffkit_neurons", "koffkit_neurons_ready"
BIASES = {"gate_bias": "gate_proj.bias", "up_bias": "up_proj.bias"}
WEIGHTS = {"gate": "gate_proj.weight", "up": "up_proj.weight", "down": "down_proj.weight"}


@dataclass(frozen=True)
class Neurons:
    """The restored neurons of one layer.

    Args:
        index: their places in the base's layer, whole numbers [n].
        gate, up: [n, D]. down: [D, n].
        gate_bias, up_bias: [n]; None where the base has none.
    """

    index: Tensor
    gate: Tensor
    up: Tensor
    down: Tensor
    gate_bias: Tensor | None = None
    up_bias: Tensor | None = None

    def tensors(self) -> dict[str, Tensor]:
        """The tensors by their names in files: `neurons`, and those of the base's modules."""
        names = {**WEIGHTS, **BIASES}
        values = {file: getattr(self, field) for field, file in names.items()}
        return {"neurons": self.index} | {name: value for name, value in values.items() if value is not None}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> Neurons:
        """The inverse of `tensors`."""
        names = {**WEIGHTS, **BIASES}
        return cls(
            tensors["neurons"], **{field: tensors[file] for field, file in names.items() if file in tensors}
        )

    def to(self, device: torch.device, dtype: torch.dtype | None = None) -> Neurons:
        """The same neurons on a device; None: weights stay of their type."""
        values = {
            name: value.to(device) if dtype is None or name == "neurons" else value.to(device, dtype)
            for name, value in self.tensors().items()
        }
        return Neurons.of(values)

    def add(self, mlp: Any, hidden: Tensor, output: Tensor) -> Tensor:
        """`output` [..., D] of an MLP plus what these neurons add to it.

        Args:
            mlp: whose activation they have.
            hidden: the MLP's input [..., D].
            output: its output without them.
        """
        return output + self.output(hidden, mlp.act_fn)

    def output(self, hidden: Tensor, activation: Any) -> Tensor:
        """What they add to the MLP's output [..., D]; arguments are those of `activations`."""
        return F.linear(self.activations(hidden, activation), self.down.to(hidden.dtype))

    def activations(self, hidden: Tensor, activation: Any) -> Tensor:
        """What their columns of down read, [..., n].

        Args:
            hidden: the MLP's input [..., D].
            activation: of the MLP.
        """
        dtype = hidden.dtype
        gate = F.linear(hidden, self.gate.to(dtype), _as(self.gate_bias, dtype))
        activated: Tensor = activation(gate) * F.linear(hidden, self.up.to(dtype), _as(self.up_bias, dtype))
        return activated


def _as(value: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if value is None else value.to(dtype)


@dataclass(frozen=True)
class NeuronRows:
    """The neurons of one layer for the rows of a batch, padded to one number n for all M memories.

    Args:
        gate, up: [M, D, n]. down: [M, n, D].
        gate_bias, up_bias: [M, 1, n]; None where no memory has one.
        groups: which rows have which memory.
    """

    gate: Tensor
    up: Tensor
    down: Tensor
    gate_bias: Tensor | None
    up_bias: Tensor | None
    groups: Groups

    @classmethod
    def of(cls, parts: Sequence[Neurons | None], groups: Groups) -> NeuronRows:
        """Stack memories; None: one without neurons in this layer."""
        given = [part for part in parts if part is not None]
        count, hidden, like = max(len(part.index) for part in given), given[0].gate.shape[1], given[0].gate
        gate, up = (like.new_zeros(len(parts), hidden, count) for _ in range(2))
        down = like.new_zeros(len(parts), count, hidden)
        biases = {
            name: None
            if all(getattr(part, name) is None for part in given)
            else like.new_zeros(len(parts), 1, count)
            for name in BIASES
        }
        for place, part in enumerate(parts):
            if part is None:
                continue
            own = slice(len(part.index))
            gate[place, :, own], up[place, :, own], down[place, own] = part.gate.T, part.up.T, part.down.T
            for name, bias in biases.items():
                value = getattr(part, name)
                if bias is not None and value is not None:
                    bias[place, 0, own] = value
        return cls(gate, up, down, **biases, groups=groups)

    def add(self, mlp: Any, hidden: Tensor, output: Tensor) -> Tensor:
        """`output` [B, T, D] of an MLP plus what the neurons of each row add; hidden: [B, T, D]."""
        dtype = hidden.dtype
        grouped = self.groups.gather(hidden)
        gate = _plus(torch.bmm(grouped, self.gate.to(dtype)), self.gate_bias)
        up = _plus(torch.bmm(grouped, self.up.to(dtype)), self.up_bias)
        return self.groups.add_product(output, mlp.act_fn(gate) * up, self.down.to(dtype))


def _plus(values: Tensor, bias: Tensor | None) -> Tensor:
    return values if bias is None else values + bias.to(values.dtype)


NeuronMemory = Mapping[int, Neurons]
"""Restored neurons by layer."""


def use_neuron_memory(model: nn.Module) -> None:
    """Make the MLPs of a model (plain or wrapped by peft) add the neurons of the attached memory."""
    if getattr(model, _READY, False):
        return
    for _, mlp in mlp_modules(model):
        mlp.register_forward_hook(_add)
    setattr(transformer(model), _READY, True)


def _add(mlp: Any, inputs: tuple[Any, ...], output: Tensor) -> Tensor | None:
    state: Neurons | NeuronRows | None = of_this_call(mlp) or getattr(mlp, _SLOT, None)
    return None if state is None else state.add(mlp, inputs[0], output)


def set_neuron_memory(model: nn.Module, memory: NeuronMemory | None) -> None:
    """Attach `{layer: neurons}`, or detach with None, for all threads; gradients flow to these tensors."""
    for index, mlp in mlp_modules(model):
        setattr(mlp, _SLOT, None if memory is None else memory.get(index))


def set_neuron_rows(
    model: nn.Module, memories: Mapping[str, NeuronMemory], rows: Sequence[str | None]
) -> None:
    """Attach to every row of a batch the neurons of its own memory, for all threads."""
    for mlp in (mlp for _, mlp in mlp_modules(model)):
        setattr(mlp, _SLOT, None)
    for module, state in neurons_of_call(model, memories, rows).items():
        setattr(module, _SLOT, state)


def neurons_of_call(
    model: nn.Module, memories: Mapping[str, NeuronMemory], rows: Sequence[str | None]
) -> dict[nn.Module, Neurons | NeuronRows]:
    """The neurons of a batch as the state of a call (`for_this_call`).

    Args:
        memories: restored neurons by domain.
        rows: a domain, or None, for each of the B rows.
    """
    wanted = [name for name in dict.fromkeys(rows) if name is not None and memories.get(name)]
    if not wanted:
        return {}
    if len(set(rows)) == 1:
        alone = memories[wanted[0]]
        return {mlp: alone[index] for index, mlp in mlp_modules(model) if index in alone}
    groups, order = Groups.of(rows, wanted)
    parts = {
        mlp: [None if name is None else memories[name].get(index) for name in order]
        for index, mlp in mlp_modules(model)
    }
    return {mlp: NeuronRows.of(own, groups) for mlp, own in parts.items() if any(own)}


def mlp_modules(model: nn.Module) -> Iterator[tuple[int, Any]]:
    """`(layer index, MLP)` of every decoder layer."""
    for index, layer in enumerate(transformer(model).model.layers):
        yield index, layer.mlp
