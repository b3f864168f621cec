"""Linear modules, wrapped by peft or not."""

from __future__ import annotations

from typing import Any


def plain_linear(module: Any) -> Any:
    """The linear module itself."""
    return module.get_base_layer() if hasattr(module, "get_base_layer") else module
