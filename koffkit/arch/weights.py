"""The tensors of a checkpoint, from its config alone."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

from . import Architecture, Shape
from .widths import layer_widths, linear_shapes


def count_parameters(arch: Architecture, shape: Shape, config: Mapping[str, Any]) -> int:
    """Parameters of the base: embeddings (tied counted once), layers with their biases and norms, final
    norm."""
    return sum(prod(size) for size in weight_shapes(arch, shape, config).values())


def weight_shapes(arch: Architecture, shape: Shape, config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Every tensor that a checkpoint of this config must hold, with its shape."""
    vocabulary = (int(config["vocab_size"]), shape.hidden)
    found: dict[str, tuple[int, ...]] = {
        f"{arch.embeddings}.weight": vocabulary,
        arch.final_norm: (shape.hidden,),
    }
    if not config.get("tie_word_embeddings", arch.ties_by_default):
        found[f"{arch.head}.weight"] = vocabulary
    for index, widths in enumerate(layer_widths(config, shape)):
        prefix = arch.layer(index)
        found |= {f"{prefix}{norm}": (int(getattr(shape, size)),) for norm, size in arch.layer_norms.items()}
        for module, (out, width) in linear_shapes(shape, widths).items():
            found[f"{prefix}{module}.weight"] = (out, width)
            if arch.has_bias(module, config):
                found[f"{prefix}{module}.bias"] = (out,)
    return found
