"""Supported architectures. `architecture_of(config)` is the one place that looks at `model_type`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import UsageError
from .families import GEMMA3, GRANITE, LLAMA, MISTRAL, QWEN2, QWEN3, SMOLLM3
from .spec import Architecture, Cut, Shape, Structure

ARCHITECTURES: Mapping[str, Architecture] = {
    arch.model_type: arch for arch in (LLAMA, MISTRAL, QWEN2, QWEN3, GRANITE, SMOLLM3, GEMMA3)
}


def architecture_of(config: Mapping[str, Any], *, source: str = "config.json") -> Architecture:
    """The declaration for a `config.json` object.

    Raises:
        UsageError: the model type is not supported; names the ones that are.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in ARCHITECTURES:
        known = ", ".join(sorted(ARCHITECTURES))
        raise UsageError(
            f"{source}: model_type {model_type!r} is not supported; koffkit knows {known}. Use a model of "
            "one of these families."
        )
    if config.get("quantization_config"):
        raise UsageError(
            f"{source}: quantization_config: quantised weights cannot be sliced; use the unquantised "
            "checkpoint."
        )
    arch = ARCHITECTURES[model_type]
    for key, reason in arch.must_be_unset.items():
        if config.get(key):
            raise UsageError(
                f"{source}: {key}: {config[key]!r} is not supported: {reason}. Use a model without it."
            )
    return arch


__all__ = ["ARCHITECTURES", "Architecture", "Cut", "Shape", "Structure", "architecture_of"]
