"""Supported architectures. Only `architecture_of(config)` looks at `model_type`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .. import plugins
from ..errors import UsageError
from .spec import Architecture, Cut, Shape, Structure, installed_structures, paper_structures


def supported() -> list[str]:
    """The model types of all installed architectures."""
    return plugins.names(plugins.ARCHITECTURES)


def architecture(model_type: str) -> Architecture:
    """The declaration of one installed architecture.

    Raises:
        UsageError: none has this name, or its package cannot be imported.
    """
    declaration: Architecture = plugins.load(plugins.ARCHITECTURES, model_type, "model_type")
    return declaration


def architecture_of(config: Mapping[str, Any], *, source: str = "config.json") -> Architecture:
    """The declaration for a `config.json` object.

    Raises:
        UsageError: the model type is not supported; the text names those that are.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in supported():
        known = ", ".join(supported())
        raise UsageError(
            f"{source}: model_type {model_type!r} is not supported; koffkit knows {known}. Use a model of "
            "one of these families."
        )
    if config.get("quantization_config"):
        raise UsageError(
            f"{source}: quantization_config: quantised weights cannot be sliced; use the unquantised "
            "checkpoint."
        )
    arch = architecture(model_type)
    for key, reason in arch.must_be_unset.items():
        if config.get(key):
            raise UsageError(
                f"{source}: {key}: {config[key]!r} is not supported: {reason}. Use a model without it."
            )
    return arch


__all__ = [
    "Architecture",
    "Cut",
    "Shape",
    "Structure",
    "architecture",
    "architecture_of",
    "installed_structures",
    "paper_structures",
    "supported",
]
