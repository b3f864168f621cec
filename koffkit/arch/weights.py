"""The tensors of a checkpoint, from its config alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import UsageError
from . import Architecture, Shape
from .widths import layer_widths, linear_shapes


def vocab_size(config: Mapping[str, Any]) -> int:
    """Rows of the embedding.

    Raises:
        UsageError: the config does not state it.
    """
    size = config.get("vocab_size")
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise UsageError(
            f"config.json: vocab_size: {size!r}; add it: the number of rows of the embedding. Other "
            "software would guess it."
        )
    return size


def weight_shapes(arch: Architecture, shape: Shape, config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Every tensor that a checkpoint of this config must hold, with its shape."""
    vocabulary = (vocab_size(config), shape.hidden)
    shapes: dict[str, tuple[int, ...]] = {
        f"{arch.embeddings}.weight": vocabulary,
        arch.final_norm: (shape.hidden,),
    }
    if not config.get("tie_word_embeddings", arch.ties_by_default):
        shapes[f"{arch.head}.weight"] = vocabulary
    for index, widths in enumerate(layer_widths(config, shape)):
        prefix = arch.layer(index)
        shapes |= {f"{prefix}{norm}": (int(getattr(shape, size)),) for norm, size in arch.layer_norms.items()}
        for module, (out, width) in linear_shapes(shape, widths).items():
            shapes[f"{prefix}{module}.weight"] = (out, width)
            if arch.has_bias(module, config):
                shapes[f"{prefix}{module}.bias"] = (out,)
    return shapes
