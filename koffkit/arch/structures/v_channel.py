"""A channel of a KV head's values, and the columns of the output projection that read it."""

from __future__ import annotations

from ..patterns import kv_channel, query_channel
from ..spec import Cut, Structure

OUTPUT = Cut(module="self_attn.o_proj", side="in", pattern=query_channel)

STRUCTURE = Structure(
    name="v_channel",
    units=lambda shape: shape.kv_heads * shape.head_dim,
    heads=lambda shape: shape.kv_heads,
    cuts=(Cut(module="self_attn.v_proj", side="out", pattern=kv_channel), OUTPUT),
    gate=OUTPUT,
    kv_memory=(("value", kv_channel),),
    paper_position=2,
)
