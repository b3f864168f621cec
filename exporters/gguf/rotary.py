"""Rotary pairs and frequencies as llama.cpp has them.

Legend: H head dim.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def plain_frequencies(rope: Mapping[str, Any], head_dim: int) -> Array:
    """Radians a position of every rotary pair, [H / 2], without scaling.

    Args:
        rope: `rope_parameters` of a config.
        head_dim: H.
    """
    exponents: Array = np.arange(0, head_dim, 2, dtype=np.float64) / head_dim
    frequencies: Array = 1.0 / float(rope["rope_theta"]) ** exponents
    return frequencies


def llama3_factors(config: Mapping[str, Any], rope: Mapping[str, Any], head_dim: int) -> Array:
    """What Llama 3.1 divides every frequency by, [H / 2], by transformers' own function."""
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    model = LlamaConfig(
        hidden_size=int(config["hidden_size"]),
        num_attention_heads=1,
        head_dim=head_dim,
        max_position_embeddings=int(config["max_position_embeddings"]),
        rope_parameters=dict(rope),
    )
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](model, None)
    factors: Array = plain_frequencies(rope, head_dim) / scaled.double().numpy()
    return factors


def as_neighbours(array: Array, axis: int, heads: int) -> Array:
    """Reorder the channels of heads from pairs (i, i + H/2) to pairs (2i, 2i + 1).

    Args:
        array: with heads * H entries along `axis`.
        axis: the channels.
        heads: how many lie one after the other.
    """
    rows: Array = np.moveaxis(array, axis, 0)
    size = rows.shape[0]
    pairs = rows.reshape(heads, 2, size // heads // 2, *rows.shape[1:])
    mixed = pairs.swapaxes(1, 2).reshape(rows.shape)
    return np.ascontiguousarray(np.moveaxis(mixed, 0, axis))
