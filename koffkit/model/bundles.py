"""Reading memory bundles, and batching memories row by row.

Legend: B batch, K KV heads, P memory tokens, H head dim.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from peft import LoraConfig
from torch import Tensor

from ..arch.widths import LayerWidths
from ..artefact.bundle import MemoryFolder
from ..artefact.names import ADAPTER_CONFIG
from ..artefact.quantise import SCALE, unpack
from ..checkpoint.on_disk import TensorsOnDisk
from ..errors import IntegrityError
from ..storage.read_json import read_json
from ..storage.tensors_file import read_tensors
from .kv_attention import KVMemory
from .neuron_memory import NeuronMemory, Neurons

KVTensors = Mapping[int, KVMemory]


def load_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file; packed ones are unpacked to float32.

    Raises:
        IntegrityError: it is missing or damaged.
    """
    return unpack(read_tensors(path, remedy="copy the bundle again"))


def load_kv(bundle: MemoryFolder, layers: Sequence[LayerWidths]) -> dict[int, KVMemory]:
    """The KV memory of a bundle by layer; empty if it has none.

    Args:
        layers: the widths of the backbone's layers.

    Raises:
        IntegrityError: a tensor does not fit the backbone.
    """
    return {} if bundle.kv_file is None else kv_of(bundle.kv_file, load_tensors(bundle.kv_file), layers)


def kv_of(path: Path, tensors: Mapping[str, Tensor], layers: Sequence[LayerWidths]) -> dict[int, KVMemory]:
    """`load_kv` of the tensors of the file `path`."""
    memory = {}
    for index in sorted({_kv_layer(path, name) for name in tensors}):
        if index >= len(layers):
            raise IntegrityError(f"{path}: layers.{index}: the backbone has {len(layers)} layers.")
        widths = layers[index]
        pair = []
        for half, width in (("key", widths.key_channels), ("value", widths.value_channels)):
            tensor = tensors.get(f"layers.{index}.{half}")
            if (
                tensor is None
                or tensor.dim() != 3
                or tensor.shape[0] != widths.kv_heads
                or tensor.shape[2] != width
            ):
                shape = None if tensor is None else list(tensor.shape)
                raise IntegrityError(
                    f"{path}: layers.{index}.{half}: shape {shape}; this backbone needs [{widths.kv_heads}, "
                    f"tokens, {width}]."
                )
            pair.append(tensor)
        memory[index] = KVMemory(*pair)
    return memory


def _kv_layer(path: Path, name: str) -> int:
    known = re.fullmatch(r"layers\.(\d{1,9})\.(key|value)", name, re.ASCII)
    if known is None:
        raise IntegrityError(f"{path}: {name!r} is no tensor of a KV memory; copy the bundle again.")
    return int(known[1])


def load_neurons(bundle: MemoryFolder, num_layers: int, hidden: int) -> dict[int, Neurons]:
    """The restored neurons of a memory by layer; empty if it has none.

    Args:
        num_layers: of the backbone.
        hidden: the backbone's hidden size D.

    Raises:
        IntegrityError: a tensor is missing, or does not fit the backbone.
    """
    path = bundle.neurons_file
    return {} if path is None else neurons_of(path, load_tensors(path), num_layers, hidden)


def neurons_of(path: Path, tensors: Mapping[str, Tensor], num_layers: int, hidden: int) -> dict[int, Neurons]:
    """`load_neurons` of the tensors of the file `path`."""
    layers: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        prefix, _, rest = name.partition(".")
        index, _, own = rest.partition(".")
        if prefix != "layers" or not re.fullmatch("[0-9]{1,9}", index) or int(index) >= num_layers:
            raise IntegrityError(f"{path}: {name}: the backbone has {num_layers} layers.")
        layers.setdefault(int(index), {})[own] = value
    for layer, parts in layers.items():
        _require_neurons(f"{path}: layers.{layer}", parts, hidden)
    return {layer: Neurons.of(parts) for layer, parts in sorted(layers.items())}


def _require_neurons(where: str, tensors: Mapping[str, Tensor], hidden: int) -> None:
    count = len(tensors.get("neurons", ()))
    wanted: dict[str, tuple[int, ...]] = {
        "neurons": (count,),
        "gate_proj.weight": (count, hidden),
        "up_proj.weight": (count, hidden),
        "down_proj.weight": (hidden, count),
    }
    if tensors.keys() & {"gate_proj.bias", "up_proj.bias"}:
        wanted |= {"gate_proj.bias": (count,), "up_proj.bias": (count,)}
    for name in sorted(tensors.keys() | wanted.keys()):
        shape = list(tensors[name].shape) if name in tensors else None
        needed = list(wanted[name]) if name in wanted else "no such tensor"
        if shape != needed:
            raise IntegrityError(f"{where}.{name}: shape {shape}; this backbone needs {needed}.")


def adapter_config(bundle: MemoryFolder) -> LoraConfig:
    """PEFT's configuration of a bundle with LoRA, for any copy of its backbone.

    Raises:
        IntegrityError: the file is damaged.
    """
    read_json(bundle.path / ADAPTER_CONFIG, remedy="copy the bundle again")  # PEFT knows no limits
    config = LoraConfig.from_pretrained(str(bundle.path))
    config.base_model_name_or_path = (
        None  # PEFT would warn of a backbone from another path; its digest was compared
    )
    return config


def load_adapter(bundle: MemoryFolder) -> dict[str, Tensor]:
    """The adapter's tensors by PEFT's names; empty if the bundle has no LoRA."""
    return {} if bundle.adapter_file is None else load_tensors(bundle.adapter_file)


@dataclass(frozen=True)
class MemoryTensors:
    """The tensors of one memory.

    Args:
        domain: the memory's domain.
        lora: the adapter's configuration; None: there is no adapter.
        adapter: the adapter's tensors by PEFT's names.
        kv: the KV memory by layer.
        neurons: the restored neurons by layer.
    """

    domain: str
    lora: LoraConfig | None
    adapter: Mapping[str, Tensor]
    kv: KVTensors
    neurons: NeuronMemory = field(default_factory=dict)


def adapter_on_disk(bundle: MemoryFolder) -> Mapping[str, Tensor]:
    """`load_adapter` with each tensor read when it is asked for; a packed one is read as a whole."""
    if bundle.adapter_file is None:
        return {}
    tensors = TensorsOnDisk(bundle.adapter_file, remedy="copy the bundle again")
    return load_adapter(bundle) if any(name.endswith(SCALE) for name in tensors) else tensors


def load_memory(
    bundle: MemoryFolder, layers: Sequence[LayerWidths], hidden: int, *, on_disk: bool = False
) -> MemoryTensors:
    """Load all parts of a bundle.

    Args:
        layers: the widths of the backbone's layers.
        hidden: the backbone's hidden size D.
        on_disk: read the adapter's tensors each time that they are asked for, and keep none.

    Raises:
        IntegrityError: a file is damaged, or does not fit the backbone.
    """
    lora = None if bundle.adapter_file is None else adapter_config(bundle)
    return MemoryTensors(
        bundle.domain,
        lora,
        adapter_on_disk(bundle) if on_disk else load_adapter(bundle),
        load_kv(bundle, layers),
        load_neurons(bundle, len(layers), hidden),
    )


def mixed_kv(memories: Mapping[str, KVTensors], rows: Sequence[str | None]) -> dict[int, KVMemory] | None:
    """Batch the KV memories of several rows, each with its own domain or none.

    Args:
        memories: KV memories by domain.
        rows: a domain, or None, for each of the B rows.

    Returns:
        The memory of the batch by layer; None if no row has one.
    """
    wanted = {name for name in rows if name is not None and memories.get(name)}
    if not wanted:
        return None
    layers = sorted({layer for name in wanted for layer in memories[name]})
    if len(set(rows)) == 1:
        return dict(memories[next(iter(wanted))])
    return {
        layer: _stack([memories[name].get(layer) if name in wanted else None for name in rows])
        for layer in layers
    }


def _stack(parts: Sequence[KVMemory | None]) -> KVMemory:
    given = [part for part in parts if part is not None]
    width = max(part.key.shape[-2] for part in given)
    visible = torch.zeros(len(parts), width, dtype=torch.bool, device=given[0].key.device)
    for row, part in enumerate(parts):
        if part is not None:
            visible[row, : part.key.shape[-2]] = True
    key = _padded([None if part is None else part.key for part in parts], width)
    value = _padded([None if part is None else part.value for part in parts], width)
    return KVMemory(key, value, None if bool(visible.all()) else visible)


def _padded(parts: Sequence[Tensor | None], width: int) -> Tensor:
    """[B, K, P, H] of memories [K, P', H] with zeros where one is shorter or missing."""
    like = next(part for part in parts if part is not None)
    padded = like.new_zeros(len(parts), like.shape[0], width, like.shape[2])
    for row, part in enumerate(parts):
        if part is not None:
            padded[row, :, : part.shape[-2]] = part
    return padded
