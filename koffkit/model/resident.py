"""Memories that are loaded and ready for calls, and what a call needs of them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from threading import Lock
from typing import Any

import torch
from torch import Tensor, nn

from ..arch.widths import LayerWidths
from ..artefact.bundle import MemoryFolder
from .bundles import KVTensors, load_kv, load_neurons, mixed_kv
from .kv_attention import KVMemory, kv_of_call
from .lora_memory import LoraMemory, Modules, load_lora, lora_of_call, use_lora
from .neuron_memory import NeuronMemory, neurons_of_call

State = Mapping[nn.Module, Any]
"""Of a call, for `for_this_call`."""
STATES = 4
"""Of mixed batches, kept for calls with the same rows."""


@dataclass(frozen=True, eq=False)
class Resident:
    """A memory on the model's device, in the type of its weights.

    Args:
        domain: the memory's domain.
        lora: LoRA by linear layer.
        kv: the KV memory by layer.
        neurons: the restored neurons by layer.
    """

    domain: str
    lora: LoraMemory
    kv: KVTensors
    neurons: NeuronMemory

    @classmethod
    def load(
        cls, bundle: MemoryFolder, model: Any, modules: Modules, widths: Sequence[LayerWidths]
    ) -> Resident:
        """Read a bundle, and put each part where its layer is.

        Args:
            bundle: the memory's folder, whose files were checked.
            model: the backbone.
            modules: of it.
            widths: of its layers.

        Raises:
            IntegrityError: a file is damaged, or does not fit the backbone.
        """
        lora = load_lora(bundle, modules)
        kv = load_kv(bundle, widths)
        neurons = load_neurons(bundle, len(widths), model.config.hidden_size)
        use_lora(modules[name] for name in lora)
        places = {name: _place(modules[name], model) for name in lora}
        layers = [_place(layer, model) for layer in model.model.layers]
        return cls(
            bundle.domain,
            {
                name: replace(pair, down=pair.down.to(*places[name]), up=pair.up.to(*places[name]))
                for name, pair in lora.items()
            },
            {
                layer: KVMemory(own.key.to(*layers[layer]), own.value.to(*layers[layer]))
                for layer, own in kv.items()
            },
            {layer: own.to(*layers[layer]) for layer, own in neurons.items()},
        )

    @property
    def num_bytes(self) -> int:
        """What its tensors take."""
        tensors: list[Tensor] = [tensor for pair in self.lora.values() for tensor in (pair.down, pair.up)]
        tensors += [tensor for own in self.kv.values() for tensor in (own.key, own.value)]
        tensors += [tensor for own in self.neurons.values() for tensor in own.tensors().values()]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _place(module: nn.Module, model: Any) -> tuple[torch.device, torch.dtype]:
    """Device and type of the weights of a module."""
    weight = next(module.parameters())
    return (model.device if weight.is_meta else weight.device), weight.dtype


class CallStates:
    """What the modules of one backbone get for the rows of a call.

    Of a batch with several memories these are new tensors, so the last few are kept: decoding step by step
    asks for the same rows again and again.
    """

    def __init__(self, model: Any, modules: Modules) -> None:
        self._model, self._modules = model, modules
        self._kept: OrderedDict[tuple[Resident | None, ...], State] = OrderedDict()
        self._lock = Lock()

    def of(self, rows: Sequence[Resident | None]) -> State:
        """The state of a call whose row b has the memory `rows[b]`, or none."""
        key = tuple(dict.fromkeys(rows)) if len(set(rows)) == 1 else tuple(rows)
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        state = self._made(key)
        with self._lock:
            self._kept[key] = state
            mixed = [other for other in self._kept if len(other) > 1]
            for other in mixed[:-STATES]:
                del self._kept[other]
        return state

    def forget(self, memory: Resident) -> None:
        """Let go of what was made of a memory."""
        with self._lock:
            for key in [key for key in self._kept if memory in key]:
                del self._kept[key]

    def _made(self, rows: Sequence[Resident | None]) -> State:
        memories = list(dict.fromkeys(own for own in rows if own is not None))
        place = {own: str(number) for number, own in enumerate(memories)}
        names = [None if own is None else place[own] for own in rows]
        kv = mixed_kv({place[own]: own.kv for own in memories}, names)
        return {
            **lora_of_call(self._modules, {place[own]: own.lora for own in memories}, names),
            **kv_of_call(self._model, kv),
            **neurons_of_call(self._model, {place[own]: own.neurons for own in memories}, names),
        }
