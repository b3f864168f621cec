"""The declarations themselves. Adding a family that computes like Llama means adding one value here."""

from __future__ import annotations

from .spec import TWO_NORMS, Architecture, Cut, Structure

MLP_NEURON = Structure(
    name="mlp_neuron",
    units="intermediate",
    cuts=(
        Cut(module="mlp.gate_proj", side="out"),
        Cut(module="mlp.up_proj", side="out"),
        Cut(module="mlp.down_proj", side="in"),
    ),
    gate=Cut(module="mlp.down_proj", side="in"),
    config=(("intermediate_size", "1"),),
)

KV_GROUP = Structure(
    name="kv_group",
    units="kv_heads",
    cuts=(
        Cut(module="self_attn.q_proj", side="out", block="queries_per_kv*head_dim"),
        Cut(module="self_attn.k_proj", side="out", block="head_dim"),
        Cut(module="self_attn.v_proj", side="out", block="head_dim"),
        Cut(module="self_attn.o_proj", side="in", block="queries_per_kv*head_dim"),
    ),
    gate=Cut(module="self_attn.o_proj", side="in", block="queries_per_kv*head_dim"),
    config=(("num_key_value_heads", "1"), ("num_attention_heads", "queries_per_kv")),
    cuts_kv_memory=True,
)

GATED_MLP_AND_GQA = {MLP_NEURON.name: MLP_NEURON, KV_GROUP.name: KV_GROUP}

ATTENTION_BIAS = {f"self_attn.{name}_proj": "attention_bias" for name in "qkvo"}
MLP_BIAS = {f"mlp.{name}_proj": "mlp_bias" for name in ("gate", "up", "down")}

LLAMA = Architecture(
    model_type="llama",
    structures=GATED_MLP_AND_GQA,
    head_pruned_container="mistral",
    reads_head_dim=True,
    container_drops={"attention_bias": False, "mlp_bias": False, "pretraining_tp": 1},
    container_sets={"sliding_window": None},
    biases=ATTENTION_BIAS | MLP_BIAS,
)

QWEN2 = Architecture(
    model_type="qwen2",
    structures=GATED_MLP_AND_GQA,
    head_pruned_container="seed_oss",
    reads_head_dim=False,
    container_drops={"use_sliding_window": False, "sliding_window": None, "max_window_layers": ..., "layer_types": ...},
    container_sets={"attention_bias": True, "attention_out_bias": False, "mlp_bias": False, "residual_dropout": 0.0},
    biases={f"self_attn.{name}_proj": None for name in "qkv"},
)

# The classes of the families below take any number of heads: they are their own container.

MISTRAL = Architecture(
    model_type="mistral",
    structures=GATED_MLP_AND_GQA,
    biases={},
)

QWEN3 = Architecture(
    model_type="qwen3",
    structures=GATED_MLP_AND_GQA,
    biases=ATTENTION_BIAS,
    layer_norms=TWO_NORMS | {"self_attn.q_norm.weight": "head_dim", "self_attn.k_norm.weight": "head_dim"},
)

GRANITE = Architecture(
    model_type="granite",
    structures=GATED_MLP_AND_GQA,
    biases=ATTENTION_BIAS | MLP_BIAS,
    logit_divisor="logits_scaling",
)

SMOLLM3 = Architecture(
    model_type="smollm3",
    structures=GATED_MLP_AND_GQA,
    biases=ATTENTION_BIAS | MLP_BIAS,
    ties_by_default=True,
)
