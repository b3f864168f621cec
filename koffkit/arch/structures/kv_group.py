"""A KV head together with all query heads that read it."""

from __future__ import annotations

from ..patterns import kv_head, query_head
from ..spec import Cut, Structure

OUTPUT = Cut(module="self_attn.o_proj", side="in", pattern=query_head)

STRUCTURE = Structure(
    name="kv_group",
    units=lambda shape: shape.kv_heads,
    cuts=(
        Cut(module="self_attn.q_proj", side="out", pattern=query_head),
        Cut(module="self_attn.k_proj", side="out", pattern=kv_head),
        Cut(module="self_attn.v_proj", side="out", pattern=kv_head),
        OUTPUT,
    ),
    gate=OUTPUT,
    kv_memory=(("key", kv_head), ("value", kv_head)),
)
