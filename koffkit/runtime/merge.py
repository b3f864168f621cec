"""Backbone and one memory as one model in memory; `koffkit export --merge` makes files of them."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from ..arch.widths import SLICED_LAYERS
from ..errors import UsageError
from ..model.neuron_memory import Neurons, mlp_modules
from ..model.resident import Resident


@torch.no_grad()
def merged_model(model: Any, memory: Resident, *, without_kv: bool) -> Any:
    """A copy of a model with a memory in its weights; see `KoffModel.merge`.

    Args:
        model: the backbone, a transformers model.
        memory: one of its memories.
        without_kv: leave the KV memory out.

    Raises:
        UsageError: there is a KV memory, and it is not to be left out; or layers would differ in width.
    """
    if memory.kv and not without_kv:
        raise UsageError(
            f"memory {memory.domain!r}: it has a KV memory, which is no part of any weight; merge it "
            "`without_kv=True`, or attach it."
        )
    layers = [layer for layer, _ in mlp_modules(model)]
    counts = [len(memory.neurons[layer].index) if layer in memory.neurons else 0 for layer in layers]
    if len(set(counts)) > 1 and not hasattr(model.config, SLICED_LAYERS):
        raise UsageError(
            f"memory {memory.domain!r}: it gives layers back different numbers of neurons, which one config "
            "cannot say; `koffkit export --merge` writes such a model."
        )
    merged = deepcopy(model)
    for _, module in merged.named_modules():
        module._forward_hooks.clear()
    merged.set_attn_implementation("sdpa")
    for name, pair in memory.lora.items():
        weight = merged.get_submodule(name).weight
        change = pair.up.double() @ pair.down.double() * pair.scaling
        weight.copy_((weight.double() + change).to(weight.dtype))
    for layer, mlp in mlp_modules(merged):
        if layer in memory.neurons:
            _grow(mlp, memory.neurons[layer])
    _widen(merged.config, counts)
    return merged


def _grow(mlp: Any, neurons: Neurons) -> None:
    """Put neurons after those that an MLP has."""
    for name, weight, bias in (
        ("gate_proj", neurons.gate, neurons.gate_bias),
        ("up_proj", neurons.up, neurons.up_bias),
    ):
        old = getattr(mlp, name)
        if old.bias is not None:
            extra = weight.new_zeros(len(weight)) if bias is None else bias
            bias = torch.cat([old.bias, extra.to(old.bias.dtype)])
        setattr(mlp, name, _linear(torch.cat([old.weight, weight.to(old.weight.dtype)]), bias))
    old = mlp.down_proj
    mlp.down_proj = _linear(torch.cat([old.weight, neurons.down.to(old.weight.dtype)], dim=1), old.bias)
    mlp.intermediate_size = mlp.gate_proj.out_features


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias, requires_grad=False)
    return linear


def _widen(config: Any, counts: Sequence[int]) -> None:
    """Write the new widths of the layers into a config."""
    own = getattr(config, SLICED_LAYERS, None)
    if own is None:
        config.intermediate_size += counts[0]
        return
    widths = [
        layer | {"intermediate": layer["intermediate"] + more}
        for layer, more in zip(own, counts, strict=True)
    ]
    setattr(config, SLICED_LAYERS, widths)
