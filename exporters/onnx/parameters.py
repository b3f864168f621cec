"""The tensors of a memory as inputs of the graph.

Every input has one axis of any length, zero included, and its default is of length zero: a graph that is
given none of them computes the bare backbone.

Legend: R LoRA rank, K KV heads, P memory tokens, E key channels, C value channels, n restored neurons, D
hidden.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ...artefact.bundle import Bundle
from ...checkpoint.spec import ModelSpec

if TYPE_CHECKING:
    from torch import Tensor, nn

FREE_AXES = {
    "lora_A": 0,  # [R, in]
    "lora_B": 1,  # [out, R], with alpha / R in it
    "memory_key": 1,  # [K, P, E], not rotated
    "memory_value": 1,  # [K, P, C]
    "neurons_gate": 0,  # [n, D]
    "neurons_up": 0,
    "neurons_down": 1,  # [D, n]
    "neurons_gate_bias": 0,  # [n]
    "neurons_up_bias": 0,
}
"""The axis of any length, by the last part of a name; the part before it is the module's."""
SAMPLE = 3
"""Length of that axis while the graph is traced; 0 and 1 would be taken for constants."""


def free_axis(name: str) -> int:
    """The axis of an input that has any length."""
    return FREE_AXES[name.rpartition(".")[2]]


def parameters_of(bundle: Bundle, spec: ModelSpec) -> dict[str, Tensor]:
    """All tensors of a memory in float32, by the names of the graph's inputs.

    Args:
        bundle: the memory.
        spec: of the backbone.

    Raises:
        IntegrityError: a file of the bundle is damaged.
    """
    from ...model.bundles import load_kv, load_neurons
    from ...model.merging import lora_factors

    found: dict[str, Tensor] = {}
    for name, factor in lora_factors(bundle).items():
        module = name.removesuffix(".weight")
        found |= {f"{module}.lora_A": factor.a, f"{module}.lora_B": factor.b * factor.scaling}
    for layer, kv in load_kv(bundle, spec.widths).items():
        module = f"model.layers.{layer}.self_attn"
        found |= {f"{module}.memory_key": kv.key, f"{module}.memory_value": kv.value}
    for layer, neurons in load_neurons(bundle, spec.num_layers, spec.shape.hidden).items():
        for part in ("gate", "up", "down", "gate_bias", "up_bias"):
            value = getattr(neurons, part)
            if value is not None:
                found[f"model.layers.{layer}.mlp.neurons_{part}"] = value
    return {name: value.float().contiguous() for name, value in found.items()}


def shapes_of(memories: Sequence[Mapping[str, Tensor]]) -> dict[str, list[int]]:
    """The inputs that the memories need together, with the shapes of their defaults."""
    shapes = {}
    for name, value in (item for memory in memories for item in memory.items()):
        shapes[name] = list(value.shape)
        shapes[name][free_axis(name)] = 0
    return dict(sorted(shapes.items()))


def sample_of(shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """Values of the inputs to trace with."""
    import torch

    sample = {}
    for name, shape in shapes.items():
        sizes = list(shape)
        sizes[free_axis(name)] = SAMPLE
        sample[name] = torch.full(sizes, 0.1)
    return sample


def state_of(model: nn.Module, memory: Mapping[str, Tensor]) -> dict[nn.Module, Any]:
    """The inputs as the state of a call (`for_this_call`).

    Args:
        model: of transformers, with koffkit's attention and neurons and `use_lora`.
        memory: values by name.
    """
    import torch

    from ...model.kv_attention import KVMemory
    from ...model.neuron_memory import Neurons

    parts: dict[str, dict[str, Tensor]] = {}
    for name, value in memory.items():
        module, _, part = name.rpartition(".")
        parts.setdefault(module, {})[part] = value
    state: dict[nn.Module, Any] = {}
    for module, own in parts.items():
        if "lora_A" in own:
            held: Any = own["lora_A"], own["lora_B"]
        elif "memory_key" in own:
            held = KVMemory(own["memory_key"], own["memory_value"])
        else:
            fields = {part.removeprefix("neurons_"): value for part, value in own.items()}
            held = Neurons(index=torch.empty(0), **fields)
        state[model.get_submodule(module)] = held
    return state


def use_lora(model: nn.Module, shapes: Mapping[str, Sequence[int]]) -> None:
    """Make the linear modules that memories adapt add the LoRA of the call."""
    for name in shapes:
        module, _, part = name.rpartition(".")
        if part == "lora_A":
            model.get_submodule(module).register_forward_hook(_add_lora)


def _add_lora(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    from torch.nn import functional as F

    from ...model.per_call import of_this_call

    a, b = of_this_call(module)
    return output + F.linear(F.linear(inputs[0], a), b)
