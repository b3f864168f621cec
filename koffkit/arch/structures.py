"""The structures of a gated MLP and of grouped-query attention: the units of the method's section 2."""

from __future__ import annotations

from collections.abc import Mapping

from .spec import Cut, Structure

NEURON_GATE = Cut(module="mlp.gate_proj", side="out", pattern="neuron")
NEURON_UP = Cut(module="mlp.up_proj", side="out", pattern="neuron")
NEURON_DOWN = Cut(module="mlp.down_proj", side="in", pattern="neuron")
DOWN_ROWS = Cut(module="mlp.down_proj", side="out", pattern="residual")

MLP_NEURON = Structure(
    name="mlp_neuron",
    units=lambda shape: shape.intermediate,
    cuts=(NEURON_GATE, NEURON_UP, NEURON_DOWN),
    gate=NEURON_DOWN,
    paper_gates=(NEURON_GATE, NEURON_UP),
)

KV_GROUP = Structure(
    name="kv_group",
    units=lambda shape: shape.kv_heads,
    cuts=(
        Cut(module="self_attn.q_proj", side="out", pattern="query head"),
        Cut(module="self_attn.k_proj", side="out", pattern="kv head"),
        Cut(module="self_attn.v_proj", side="out", pattern="kv head"),
        Cut(module="self_attn.o_proj", side="in", pattern="query head"),
    ),
    gate=Cut(module="self_attn.o_proj", side="in", pattern="query head"),
    kv_memory=(("key", "kv head"), ("value", "kv head")),
)

# A pair is gated at the queries: q * (g k) = (g q) * k, which covers the keys of text and of the KV memory
# alike.
QK_PAIR = Structure(
    name="qk_pair",
    units=lambda shape: shape.kv_heads * shape.head_dim // 2,
    heads=lambda shape: shape.kv_heads,
    cuts=(
        Cut(module="self_attn.q_proj", side="out", pattern="query pair"),
        Cut(module="self_attn.k_proj", side="out", pattern="kv pair"),
    ),
    gate=Cut(module="self_attn.q_proj", side="out", pattern="query pair"),
    kv_memory=(("key", "kv pair"),),
)

V_CHANNEL = Structure(
    name="v_channel",
    units=lambda shape: shape.kv_heads * shape.head_dim,
    heads=lambda shape: shape.kv_heads,
    cuts=(
        Cut(module="self_attn.v_proj", side="out", pattern="kv channel"),
        Cut(module="self_attn.o_proj", side="in", pattern="query channel"),
    ),
    gate=Cut(module="self_attn.o_proj", side="in", pattern="query channel"),
    kv_memory=(("value", "kv channel"),),
)

MLP_OUTPUT = Structure(
    name="mlp_output",
    units=lambda shape: shape.hidden,
    zeros=(DOWN_ROWS,),
    gate=DOWN_ROWS,
)

ALL: Mapping[str, Structure] = {s.name: s for s in (MLP_NEURON, KV_GROUP, QK_PAIR, V_CHANNEL, MLP_OUTPUT)}
PAPER = ("mlp_neuron", "qk_pair", "v_channel", "mlp_output")
"""The paper gates the outputs of k, v, gate, up and down (section 3): these structures, neurons through their
`paper_gates`."""
