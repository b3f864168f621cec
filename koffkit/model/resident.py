"""Memories that are loaded and ready for calls, and what a call needs of them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from threading import Lock
from typing import Any

from torch import Tensor, nn

from .bundles import KVTensors, mixed_kv
from .kv_attention import kv_of_call
from .lora_memory import LoraMemory, Modules, lora_of_call
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

    @cached_property
    def num_bytes(self) -> int:
        """What its tensors take."""
        return sum(tensor.nbytes for tensor in self.tensors())

    def tensors(self) -> Iterator[Tensor]:
        """All of them."""
        for pair in self.lora.values():
            yield from (pair.down, pair.up)
        for own in self.kv.values():
            yield from (own.key, own.value)
        for part in self.neurons.values():
            yield from part.tensors().values()


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
