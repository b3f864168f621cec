"""The sizes of well-known models, as their `config.json` have them: what is planned without a download."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def _llama(
    layers: int, hidden: int, neurons: int, heads: int, head_dim: int, *, tied: bool = False
) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 128256,
        "hidden_size": hidden,
        "intermediate_size": neurons,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": 8,
        "head_dim": head_dim,
        "max_position_embeddings": 131072,
        "tie_word_embeddings": tied,
        "dtype": "bfloat16",
    }


def _qwen(
    layers: int, hidden: int, neurons: int, heads: tuple[int, int], vocabulary: int, *, tied: bool = False
) -> dict[str, Any]:
    return {
        "model_type": "qwen2",
        "architectures": ["Qwen2ForCausalLM"],
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": neurons,
        "num_hidden_layers": layers,
        "num_attention_heads": heads[0],
        "num_key_value_heads": heads[1],
        "max_position_embeddings": 32768,
        "tie_word_embeddings": tied,
        "dtype": "bfloat16",
    }


SMALL = {"vocab_size": 49152, "num_key_value_heads": 3, "max_position_embeddings": 8192}
"""What SmolLM2-135M has in place of a Llama 3's."""

SHAPES: Mapping[str, dict[str, Any]] = {
    "HuggingFaceTB/SmolLM2-135M-Instruct": _llama(30, 576, 1536, 9, 64, tied=True) | SMALL,
    "meta-llama/Llama-3.2-1B": _llama(16, 2048, 8192, 32, 64, tied=True),
    "meta-llama/Llama-3.2-3B": _llama(28, 3072, 8192, 24, 128, tied=True),
    "meta-llama/Llama-3.1-8B": _llama(32, 4096, 14336, 32, 128),
    "meta-llama/Llama-3.1-70B": _llama(80, 8192, 28672, 64, 128),
    "meta-llama/Llama-3.1-405B": _llama(126, 16384, 53248, 128, 128),
    "Qwen/Qwen2.5-3B": _qwen(36, 2048, 11008, (16, 2), 151936, tied=True),
    "Qwen/Qwen2.5-7B": _qwen(28, 3584, 18944, (28, 4), 152064),
    "Qwen/Qwen2.5-14B": _qwen(48, 5120, 13824, (40, 8), 152064),
    "Qwen/Qwen2.5-32B": _qwen(64, 5120, 27648, (40, 8), 152064),
    "Qwen/Qwen2.5-72B": _qwen(80, 8192, 29568, (64, 8), 152064),
}
"""By hub id."""
