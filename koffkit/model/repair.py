"""A repair in a live model: linear modules compute with other weights while the model is pruned."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F

from .linear import plain_linear


def use_repair(model: nn.Module, tensors: Mapping[str, Tensor], active: Callable[[], bool]) -> None:
    """Let linear modules use these tensors instead of their own whenever `active()`; LoRA stays on top.

    Args:
        model: the transformers model.
        tensors: weights and biases by parameter name, at the widths of the model. A module without a bias may
            get one.
        active: asked at every call of a module.
    """
    for name in dict.fromkeys(name.rpartition(".")[0] for name in tensors):
        linear = plain_linear(model.get_submodule(name))
        weight, bias = (_placed(linear.weight, tensors.get(f"{name}.{kind}")) for kind in ("weight", "bias"))
        linear.forward = partial(_forward, linear, weight, bias, active)


def _placed(weight: Tensor, value: Tensor | None) -> Tensor | None:
    """A tensor where the module computes; one that trains keeps its type."""
    if value is None or value.requires_grad:
        return value
    return value.to(weight.device, weight.dtype)


def _forward(
    linear: nn.Linear, weight: Tensor | None, bias: Tensor | None, active: Callable[[], bool], inputs: Tensor
) -> Tensor:
    if not active():
        return F.linear(inputs, linear.weight, linear.bias)
    if weight is not None:
        weight = weight.to(linear.weight.dtype)
    return F.linear(
        inputs, linear.weight if weight is None else weight, linear.bias if bias is None else bias
    )
