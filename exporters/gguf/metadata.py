"""The metadata of a GGUF model: sizes, rotary parameters, scales."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .target import Target

FILE_TYPES = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "bf16": "MOSTLY_BF16", "q8_0": "MOSTLY_Q8_0"}


def write_metadata(writer: Any, target: Target, name: str, kind: str) -> None:
    """Add all metadata but the tokenizer's.

    Args:
        writer: a `GGUFWriter`.
        target: the backbone.
        name: of the model.
        kind: the type of its matrices.
    """
    from gguf import GGML_QUANT_VERSION, LlamaFileType

    config, shape, widths = target.config, target.spec.shape, target.widths
    writer.add_name(name)
    writer.add_file_type(LlamaFileType[FILE_TYPES[kind]])
    writer.add_quantization_version(GGML_QUANT_VERSION)
    writer.add_vocab_size(int(config["vocab_size"]))
    writer.add_context_length(target.context_length)
    writer.add_embedding_length(shape.hidden)
    writer.add_block_count(shape.num_layers)
    each = target.arch.per_layer
    kv_heads = [layer.kv_heads for layer in widths]
    writer.add_feed_forward_length(_counts([layer.intermediate for layer in widths], each))
    writer.add_head_count(_counts([heads * shape.queries_per_kv for heads in kv_heads], each))
    writer.add_head_count_kv(_counts(kv_heads, each))
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_layer_norm_rms_eps(float(config["rms_norm_eps"]))
    _write_rope(writer, target)
    if target.arch.name == "granite":
        writer.add_attention_scale(float(config["attention_multiplier"]))
        writer.add_embedding_scale(float(config["embedding_multiplier"]))
        writer.add_residual_scale(float(config["residual_multiplier"]))
        writer.add_logit_scale(float(config["logits_scaling"]))


def _counts(values: Sequence[int], each: bool) -> int | list[int]:
    return list(values) if each else values[0]


def _write_rope(writer: Any, target: Target) -> None:
    from gguf import RopeScalingType

    rope = target.rope
    writer.add_rope_dimension_count(target.spec.shape.head_dim)
    writer.add_rope_freq_base(float(rope["rope_theta"]))
    if rope.get("rope_type", "default") == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(rope["factor"]))
