"""How the channels of a tensor dimension belong to units: what a `Cut` of a structure names.

Every pattern gives the unit of each channel, [channels].

Legend: F intermediate, N query heads, K KV heads, H head dim.
"""

from __future__ import annotations

import numpy as np

from .spec import Indices, Shape


def neuron(shape: Shape) -> Indices:
    """Each of the F channels is a unit."""
    return np.arange(shape.intermediate)


def residual(shape: Shape) -> Indices:
    """Each of the hidden channels is a unit."""
    return np.arange(shape.hidden)


def kv_channel(shape: Shape) -> Indices:
    """Each of the K * H channels is a unit."""
    return np.arange(shape.kv_heads * shape.head_dim)


def query_channel(shape: Shape) -> Indices:
    """For every channel of the query heads, [N * H], the channel of the KV head that its head reads."""
    head, inside = np.divmod(np.arange(shape.query_heads * shape.head_dim), shape.head_dim)
    return head // shape.queries_per_kv * shape.head_dim + inside


def kv_head(shape: Shape) -> Indices:
    """The KV head of each of its channels, [K * H]."""
    return kv_channel(shape) // shape.head_dim


def query_head(shape: Shape) -> Indices:
    """For every channel of the query heads, [N * H], the KV head that its head reads."""
    return query_channel(shape) // shape.head_dim


def kv_pair(shape: Shape) -> Indices:
    """The RoPE pair of each channel of the KV heads, [K * H]."""
    return _pairs(kv_channel(shape), shape)


def query_pair(shape: Shape) -> Indices:
    """For every channel of the query heads, [N * H], the RoPE pair of the KV head that its head reads."""
    return _pairs(query_channel(shape), shape)


def _pairs(channels: Indices, shape: Shape) -> Indices:
    """Channels i and i + H / 2 of a head are a pair: the half-rotation layout of all supported families."""
    head, inside = np.divmod(channels, shape.head_dim)
    units: Indices = head * (shape.head_dim // 2) + inside % (shape.head_dim // 2)
    return units
