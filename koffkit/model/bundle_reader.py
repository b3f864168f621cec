"""Reading memories for calls: each costs the reading of its bytes.

What follows from the headers of a bundle's files and from its configuration, that is names, shapes and where
each tensor belongs, is checked against the backbone once. Bundles with the same ones are then one read of a
file into one buffer, and views of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from threading import Lock
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ..arch.widths import LayerWidths
from ..artefact.bundle import MemoryFolder
from ..artefact.names import ADAPTER_CONFIG
from ..artefact.quantise import SCALE, unpack
from ..storage.read_json import parse_json_object, read_limited
from .bundles import kv_of, neurons_of
from .flat_file import KNOWN, REMEDY, FlatFile, Headers, Layout, Place
from .host_pages import HostPages
from .kv_attention import KVMemory
from .lora_memory import LowRank, Modules, lora_of, use_lora
from .neuron_memory import Neurons
from .resident import Resident

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class Fit:
    """Where the tensors of bundles belong in a backbone, by their names in the files.

    Args:
        lora: linear layer, its two factors, and alpha / rank.
        kv: layer, key and value.
        neurons: layer, and its tensors by the names of `Neurons.tensors`.
        packed: of each file, whether its tensors are packed integers.
        alike: whether what is read is of one type in each file, and converted as one.
        dtypes: of what is read.
        weights: of the modules that it belongs to.
    """

    lora: Sequence[tuple[str, str, str, float]]
    kv: Sequence[tuple[int, str, str]]
    neurons: Sequence[tuple[int, Mapping[str, str]]]
    packed: Sequence[bool]
    alike: bool
    dtypes: frozenset[torch.dtype]
    weights: Sequence[Tensor]

    def filled(self, domain: str, lora: Tensors, kv: Tensors, neurons: Tensors) -> Resident:
        """A memory of these tensors."""
        return Resident(
            domain,
            {module: LowRank(lora[down], lora[up], scaling) for module, down, up, scaling in self.lora},
            {layer: KVMemory(kv[key], kv[value]) for layer, key, value in self.kv},
            {
                layer: Neurons.of({own: neurons[name] for own, name in names.items()})
                for layer, names in self.neurons
            },
        )


@dataclass(frozen=True, eq=False)
class Slot:
    """Room for one memory.

    Args:
        fit: of the memory.
        place: where it is, and of which type.
        buffers: the bytes of its files.
        memory: whose tensors are all views of `buffers`.
    """

    fit: Fit
    place: Place
    buffers: Sequence[Tensor]
    memory: Resident


class BundleReader:
    """Reads the memories of one backbone; several threads may call it.

    Args:
        model: the backbone, a transformers model.
        modules: of it, by name.
        widths: of its layers.
        pages: keeps what is read and then copied to a device or into another type; None: nothing is kept.
    """

    def __init__(
        self, model: Any, modules: Modules, widths: Sequence[LayerWidths], pages: HostPages | None = None
    ) -> None:
        self._model, self._modules, self._widths, self._pages = model, modules, widths, pages
        self._headers = Headers()
        self._fits: dict[tuple[Layout | bytes | None, ...], Fit] = {}
        self._slots: WeakKeyDictionary[Resident, Slot] = WeakKeyDictionary()
        self._spare: Slot | None = None
        self._lock = Lock()

    def __call__(self, bundle: MemoryFolder) -> Resident:
        """Read a bundle, and put each part where its layer is.

        Args:
            bundle: the memory's folder, whose files were checked.

        Raises:
            IntegrityError: a file is damaged, or does not fit the backbone; nothing but headers was read.
        """
        with ExitStack() as stack:
            paths = (bundle.adapter_file, bundle.kv_file, bundle.neurons_file)
            files = [
                None if path is None else stack.enter_context(FlatFile(path, self._headers)) for path in paths
            ]
            fit = self._fit(bundle, [None if file is None else file.layout for file in files])
            place = self._only_place(fit)
            slot = self._free_slot(fit, place)
            if slot is None:
                return self._read(bundle.domain, files, fit, place)
            for file, buffer in zip(filter(None, files), slot.buffers, strict=True):
                file.read(buffer)
        return self._in_slot(slot, bundle.domain)

    def take_back(self, memory: Resident) -> None:
        """Keep the room of a memory that nobody will use again, for the next one that fits in."""
        with self._lock:
            self._spare = self._slots.pop(memory, self._spare)

    def _free_slot(self, fit: Fit, place: Place | None) -> Slot | None:
        with self._lock:
            slot = self._spare
            if slot is None or slot.fit is not fit or slot.place != place:
                return None
            self._spare = None
            return slot

    def _in_slot(self, slot: Slot, domain: str) -> Resident:
        """What was read into a slot, as a memory that gives it back."""
        memory = replace(slot.memory, domain=domain)
        with self._lock:
            self._slots[memory] = slot
        return memory

    def _read(self, domain: str, files: Sequence[FlatFile | None], fit: Fit, place: Place | None) -> Resident:
        """Read a memory into new room."""
        in_slot = fit.alike and place == (torch.device("cpu"), *fit.dtypes)  # the next one overwrites it
        page = FlatFile.read if in_slot or self._pages is None else self._pages.read
        read = [None if file is None else (file.layout, page(file)) for file in files]
        lora, kv, neurons = (
            {} if part is None else _unpacked(part[0].views(part[1], None if packed else place), packed)
            for part, packed in zip(read, fit.packed, strict=True)
        )
        memory = fit.filled(domain, lora, kv, neurons)
        if place is None or not fit.alike:
            return self._placed(memory)
        if not in_slot:
            return memory
        buffers = [part[1] for part in read if part is not None]
        return self._in_slot(Slot(fit, place, buffers, memory), domain)

    def _fit(self, bundle: MemoryFolder, layouts: Sequence[Layout | None]) -> Fit:
        """What was found for bundles with these headers and this configuration, or is found now."""
        config = b"" if layouts[0] is None else read_limited(bundle.path / ADAPTER_CONFIG, remedy=REMEDY)
        key = (*layouts, config)
        found = self._fits.get(key)
        if found is None:
            found = self._checked(bundle, layouts, config)
            if len(self._fits) >= KNOWN:
                self._fits.clear()
            self._fits[key] = found
        return found

    def _checked(self, bundle: MemoryFolder, layouts: Sequence[Layout | None], config: bytes) -> Fit:
        """Check names and shapes.

        Raises:
            IntegrityError: they do not fit the backbone.
        """
        packed = [layout is not None and _is_packed(layout) for layout in layouts]
        lora, kv, neurons = (
            {} if layout is None else _unpacked(layout.like, own)
            for layout, own in zip(layouts, packed, strict=True)
        )
        pairs: Mapping[str, LowRank] = {}
        if bundle.adapter_file is not None:
            said = parse_json_object(config, str(bundle.path / ADAPTER_CONFIG), remedy=REMEDY)
            pairs = lora_of(bundle, lora, said, self._modules)
        memory = {} if bundle.kv_file is None else kv_of(bundle.kv_file, kv, self._widths)
        use_lora(self._modules[module] for module in pairs)
        restored = (
            {}
            if bundle.neurons_file is None
            else neurons_of(bundle.neurons_file, neurons, len(self._widths), self._model.config.hidden_size)
        )
        names = {id(like): name for part in (lora, kv, neurons) for name, like in part.items()}
        return Fit(
            [
                (module, names[id(pair.down)], names[id(pair.up)], pair.scaling)
                for module, pair in pairs.items()
            ],
            [(layer, names[id(own.key)], names[id(own.value)]) for layer, own in memory.items()],
            [
                (layer, {own: names[id(like)] for own, like in part.tensors().items()})
                for layer, part in restored.items()
            ],
            packed,
            not any(packed) and all(layout is None or layout.alike for layout in layouts),
            frozenset[torch.dtype]().union(*(layout.dtypes for layout in layouts if layout is not None)),
            [_weight(self._modules[module]) for module in pairs] + self._of_layers(),
        )

    def _of_layers(self) -> list[Tensor]:
        return [next(layer.parameters()) for layer in self._model.model.layers]

    def _only_place(self, fit: Fit) -> Place | None:
        """Where all parts go, and of which type they are; None: that differs."""
        places = {(weight.device, weight.dtype) for weight in fit.weights}
        (device, dtype), *more = places
        return None if more else (self._model.device if device.type == "meta" else device, dtype)

    def _placed(self, memory: Resident) -> Resident:
        """A memory with each part where its layer is, and of the type of its weights."""
        own = self._model.device
        linear = {name: _place(_weight(self._modules[name]), own) for name in memory.lora}
        layers = [_place(weight, own) for weight in self._of_layers()]
        return Resident(
            memory.domain,
            {
                name: replace(pair, down=pair.down.to(*linear[name]), up=pair.up.to(*linear[name]))
                for name, pair in memory.lora.items()
            },
            {
                layer: KVMemory(part.key.to(*layers[layer]), part.value.to(*layers[layer]))
                for layer, part in memory.kv.items()
            },
            {layer: part.to(*layers[layer]) for layer, part in memory.neurons.items()},
        )


def _weight(linear: nn.Module) -> Tensor:
    weight: Tensor = linear.get_parameter("weight")
    return weight


def _place(weight: Tensor, otherwise: torch.device) -> Place:
    """Where a weight is when it is used."""
    return (otherwise if weight.is_meta else weight.device), weight.dtype


def _is_packed(layout: Layout) -> bool:
    return any(name.endswith(SCALE) for name in layout.like)


def _unpacked(tensors: Tensors, packed: bool) -> Tensors:
    return unpack(tensors) if packed else tensors
