"""The declarations themselves. Adding a family that computes like Llama means adding one value and one entry
point (`koffkit.architectures`), here or in another package."""

from __future__ import annotations

from .spec import NO_STOCK, TWO_NORMS, Architecture

QK_NORM = (
    "its RMS norm over the whole head mixes what is left of a head with what is gone; use kv_group or "
    "v_channel"
)
HEAD_NORMS = {"self_attn.q_norm.weight": "head_dim", "self_attn.k_norm.weight": "head_dim"}

ATTENTION_BIAS = {f"self_attn.{name}_proj": "attention_bias" for name in "qkvo"}
MLP_BIAS = {f"mlp.{name}_proj": "mlp_bias" for name in ("gate", "up", "down")}

LLAMA = Architecture(
    model_type="llama",
    head_pruned_container="mistral",
    reads_head_dim=True,
    container_drops={"attention_bias": False, "mlp_bias": False, "pretraining_tp": 1},
    container_sets={"sliding_window": None},
    biases=ATTENTION_BIAS | MLP_BIAS,
)

QWEN2 = Architecture(
    model_type="qwen2",
    head_pruned_container="seed_oss",
    reads_head_dim=False,
    container_drops={
        "use_sliding_window": False,
        "sliding_window": None,
        "max_window_layers": ...,
        "layer_types": ...,
    },
    container_sets={
        "attention_bias": True,
        "attention_out_bias": False,
        "mlp_bias": False,
        "residual_dropout": 0.0,
    },
    biases={f"self_attn.{name}_proj": None for name in "qkv"},
)

# The classes of the families below take any number of heads: they are their own container.

MISTRAL = Architecture(
    model_type="mistral",
    biases={},
)

QWEN3 = Architecture(
    model_type="qwen3",
    biases=ATTENTION_BIAS,
    layer_norms=TWO_NORMS | HEAD_NORMS,
    sets_head_dim=True,
    refuses={"qk_pair": QK_NORM, "q_k_pair": QK_NORM},
)

GRANITE = Architecture(
    model_type="granite",
    biases=ATTENTION_BIAS | MLP_BIAS,
    logit_divisor="logits_scaling",
)

SMOLLM3 = Architecture(
    model_type="smollm3",
    biases=ATTENTION_BIAS | MLP_BIAS,
    ties_by_default=True,
)

GEMMA3 = Architecture(
    model_type="gemma3_text",
    head_pruned_container=NO_STOCK,
    sets_head_dim=True,
    biases=ATTENTION_BIAS,
    layer_norms=TWO_NORMS
    | HEAD_NORMS
    | {f"{place}_feedforward_layernorm.weight": "hidden" for place in ("pre", "post")},
    refuses={"qk_pair": QK_NORM, "q_k_pair": QK_NORM},
    ties_by_default=True,
    must_be_unset={
        "final_logit_softcapping": "the distillation loss takes logits to be linear in the last hidden "
        "states",
        "use_bidirectional_attention": "a backbone is a causal language model",
    },
)
