"""Tiny GGUF files, written in the test process with the `gguf` package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from .common import make_checkpoint

SIZES = {"intermediate_size": 64, "tie_word_embeddings": False}
"""Rows of a quantised tensor are whole blocks of 32 numbers."""
CHAT = "{% for message in messages %}<s>{{ message.content }}</s>{% endfor %}"
_NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_OUTER = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def make_gguf(
    path: Path, kind: str = "Q8_0", *, leave_out: str = "", arch: str = "llama", **metadata: Any
) -> Path:
    """A random Llama as a GGUF file.

    Args:
        kind: how matrices are stored; vectors are always F32.
        leave_out: ggml's name of a tensor that the file lacks.
        metadata: further keys, with `__` for a dot.

    Returns:
        `path`; the model that was written lies beside it, in the folder `source`.
    """
    gguf = pytest.importorskip("gguf")
    from transformers import AutoModelForCausalLM

    source = path.parent / "source"
    if not source.is_dir():
        make_checkpoint(source, **SIZES)
    model = AutoModelForCausalLM.from_pretrained(source)
    writer = gguf.GGUFWriter(path, arch)
    _write_config(writer, model.config)
    _write_tokenizer(writer, source)
    for key, value in metadata.items():
        write = writer.add_string if isinstance(value, str) else writer.add_uint32
        write(key.replace("__", "."), value)
    for name, weight in model.state_dict().items():
        if (stored := _stored_name(name)) != leave_out:
            _write_tensor(writer, stored, weight.numpy(), kind, model.config)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _write_config(writer: Any, config: Any) -> None:
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    writer.add_license("apache-2.0")


def _write_tokenizer(writer: Any, source: Path) -> None:
    import json

    core = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    tokens = sorted(core["vocab"], key=core["vocab"].get)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if index < 3 else 1 for index in range(len(tokens))])  # control, normal
    writer.add_token_merges([" ".join(pair) for pair in core["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_pad_token_id(2)
    writer.add_chat_template(CHAT)


def _stored_name(name: str) -> str:
    parts = name.split(".")
    if parts[1] == "layers":
        return f"blk.{parts[2]}.{_NAMES['.'.join(parts[3:-1])]}.{parts[-1]}"
    return f"{_OUTER['.'.join(parts[:-1])]}.{parts[-1]}"


def _write_tensor(writer: Any, name: str, weight: np.ndarray[Any, Any], kind: str, config: Any) -> None:
    from gguf import GGMLQuantizationType
    from gguf.quants import quantize

    for part, heads in (("attn_q", config.num_attention_heads), ("attn_k", config.num_key_value_heads)):
        if part in name:  # ggml rotates neighbours, transformers halves
            halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, -1)
            weight = np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(weight.shape)
    stored = GGMLQuantizationType[kind if weight.ndim == 2 else "F32"]
    writer.add_tensor(name, quantize(weight, stored), raw_dtype=stored)
