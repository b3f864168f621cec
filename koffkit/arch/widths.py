"""The widths of every layer after slicing, as derived from masks and as recorded in a backbone's
`config.json`.

Legend: K KV heads, H head dim.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .spec import Shape

SLICED_LAYERS = "sliced_layers"
"""Key of `config.json` in backbones that need koffkit's model class: one object per layer."""


@dataclass(frozen=True, kw_only=True)
class LayerWidths:
    """One layer.

    Args:
        intermediate: MLP neurons. kv_heads: KV heads, each with all its query heads.
        key_channels, value_channels: of one KV head; a key channel is also one of each of its queries.
    """

    intermediate: int
    kv_heads: int
    key_channels: int
    value_channels: int


def full_widths(shape: Shape) -> LayerWidths:
    """The widths of an uncut layer."""
    return LayerWidths(
        intermediate=shape.intermediate,
        kv_heads=shape.kv_heads,
        key_channels=shape.head_dim,
        value_channels=shape.head_dim,
    )


def layer_widths(config: Mapping[str, Any], shape: Shape) -> list[LayerWidths]:
    """Every layer's widths, from a `config.json` object: the recorded ones, else the same for all."""
    recorded = config.get(SLICED_LAYERS)
    if recorded is None:
        return [full_widths(shape)] * shape.num_layers
    return [
        LayerWidths(
            intermediate=int(layer["intermediate"]),
            kv_heads=int(layer["kv_heads"]),
            key_channels=2 * _pairs(layer["rope_pairs"], shape),
            value_channels=int(layer["value_channels"]),
        )
        for layer in recorded
    ]


def _pairs(recorded: list[str] | None, shape: Shape) -> int:
    return shape.head_dim // 2 if recorded is None else int(recorded[0], 16).bit_count()


def linear_shapes(shape: Shape, widths: LayerWidths | None = None) -> dict[str, tuple[int, int]]:
    """`(out, in)` features of the linear modules of one decoder layer; by default of an uncut one."""
    w = widths or full_widths(shape)
    heads = w.kv_heads * shape.queries_per_kv
    return {
        "self_attn.q_proj": (heads * w.key_channels, shape.hidden),
        "self_attn.k_proj": (w.kv_heads * w.key_channels, shape.hidden),
        "self_attn.v_proj": (w.kv_heads * w.value_channels, shape.hidden),
        "self_attn.o_proj": (shape.hidden, heads * w.value_channels),
        "mlp.gate_proj": (w.intermediate, shape.hidden),
        "mlp.up_proj": (w.intermediate, shape.hidden),
        "mlp.down_proj": (shape.hidden, w.intermediate),
    }
