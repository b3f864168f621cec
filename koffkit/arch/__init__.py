"""Supported architectures. `architecture_of(config)` is the one place that looks at `model_type`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import UsageError
from .families import GRANITE, LLAMA, MISTRAL, QWEN2, QWEN3, SMOLLM3
from .spec import Architecture, Cut, Shape, Structure

ARCHITECTURES: Mapping[str, Architecture] = {arch.model_type: arch for arch in (LLAMA, MISTRAL, QWEN2, QWEN3, GRANITE, SMOLLM3)}


def architecture_of(config: Mapping[str, Any], *, source: str = "config.json") -> Architecture:
    """The declaration for a `config.json` object.

    Raises:
        UsageError: the model type is not supported; names the ones that are.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in ARCHITECTURES:
        known = ", ".join(sorted(ARCHITECTURES))
        raise UsageError(
            f"{source}: model_type {model_type!r} is not supported; koffkit knows {known}. Use a model of one of these families."
        )
    if config.get("quantization_config"):
        raise UsageError(f"{source}: quantization_config: quantised weights cannot be sliced; use the unquantised checkpoint.")
    return ARCHITECTURES[model_type]


__all__ = ["ARCHITECTURES", "Architecture", "Cut", "Shape", "Structure", "architecture_of"]
