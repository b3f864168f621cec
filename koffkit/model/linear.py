"""Linear modules, wrapped by peft or not."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..parallel.sharding import whole


def plain_linear(module: Any) -> Any:
    """The linear module itself."""
    return module.get_base_layer() if hasattr(module, "get_base_layer") else module


def plain_weight(module: Any) -> Tensor:
    """The weight [out, in] of the linear module itself, whole even if several processes divide the model."""
    return whole(plain_linear(module).weight)
