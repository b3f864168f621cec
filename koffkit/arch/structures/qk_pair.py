"""Two channels of a KV head's keys that RoPE rotates together, and the same two of its queries."""

from __future__ import annotations

from ..patterns import kv_pair, query_pair
from ..spec import Cut, Structure

QUERIES = Cut(module="self_attn.q_proj", side="out", pattern=query_pair)

STRUCTURE = Structure(
    name="qk_pair",
    units=lambda shape: shape.kv_heads * shape.head_dim // 2,
    heads=lambda shape: shape.kv_heads,
    cuts=(QUERIES, Cut(module="self_attn.k_proj", side="out", pattern=kv_pair)),
    # q * (g k) = (g q) * k: a gate at the queries covers the keys of text and of the KV memory alike.
    gate=QUERIES,
    kv_memory=(("key", kv_pair),),
    paper_position=1,
)
