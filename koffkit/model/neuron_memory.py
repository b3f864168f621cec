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

    def to(self, device: torch.device) -> Neurons:
        """The same neurons on a device."""
        return Neurons.of({name: value.to(device) for name, value in self.tensors().items()})

    def output(self, hidden: Tensor, activation: Any) -> Tensor:
        """What they add to the MLP's output [..., D].

        Args:
            hidden: the MLP's input [..., D].
            activation: of the MLP.
        """
        dtype = hidden.dtype
        gate = F.linear(hidden, self.gate.to(dtype), _as(self.gate_bias, dtype))
        up = F.linear(hidden, self.up.to(dtype), _as(self.up_bias, dtype))
        return F.linear(activation(gate) * up, self.down.to(dtype))


def _as(value: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if value is None else value.to(dtype)


@dataclass(frozen=True)
class NeuronRows:
    """The neurons of one layer for the rows of a batch.

    Args:
        num_rows: of the batch, before generation repeats each of them for beams or several samples.
        parts: neurons with the indices of the rows that have them; None = all.
    """

    num_rows: int
    parts: Sequence[tuple[Neurons, Tensor | None]]


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
    rows: NeuronRows | None = of_this_call(mlp) or getattr(mlp, _SLOT, None)
    if rows is None:
        return None
    hidden: Tensor = inputs[0]
    for neurons, chosen in rows.parts:
        if chosen is None:
            output = output + neurons.output(hidden, mlp.act_fn)
            continue
        repeats = hidden.shape[0] // rows.num_rows
        index = (
            chosen.to(hidden.device)[:, None] * repeats + torch.arange(repeats, device=hidden.device)
        ).flatten()
        output = output.index_add(0, index, neurons.output(hidden[index], mlp.act_fn))
    return output


def set_neuron_memory(model: nn.Module, memory: NeuronMemory | None) -> None:
    """Attach `{layer: neurons}`, or detach with None, for all threads; gradients flow to these tensors."""
    for index, mlp in mlp_modules(model):
        neurons = None if memory is None else memory.get(index)
        setattr(mlp, _SLOT, None if neurons is None else NeuronRows(1, [(neurons, None)]))


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
) -> dict[nn.Module, NeuronRows]:
    """The neurons of a batch as the state of a call (`for_this_call`).

    Args:
        memories: restored neurons by domain.
        rows: a domain, or None, for each of the B rows.
    """
    wanted = [name for name in dict.fromkeys(rows) if name is not None and memories.get(name)]
    if not wanted:
        return {}
    places = {
        name: None
        if len(set(rows)) == 1
        else torch.tensor([row for row, own in enumerate(rows) if own == name])
        for name in wanted
    }
    return {
        mlp: NeuronRows(len(rows), parts)
        for index, mlp in mlp_modules(model)
        if (parts := [(memories[name][index], places[name]) for name in wanted if index in memories[name]])
    }


def mlp_modules(model: nn.Module) -> Iterator[tuple[int, Any]]:
    """`(layer index, MLP)` of every decoder layer."""
    for index, layer in enumerate(transformer(model).model.layers):
        yield index, layer.mlp
