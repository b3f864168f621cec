"""KV memories initialised with the model's own keys and values for the domain's first tokens (as in
Cartridges, arXiv 2506.06266) instead of random numbers.

Legend: T tokens, P memory tokens, K KV heads, E key channels of a head, C value channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .kv_attention import attention_modules
from .memory import Memories


@torch.no_grad()
def text_memory(model: Any, tokens: Sequence[int], memories: Memories) -> dict[int, tuple[Tensor, Tensor]]:
    """Compute keys [K, P, E] before rotation and values [K, P, C] of every layer that carries memory.

    Args:
        model: the transformers model, whose gates are off.
        tokens: token ids, P of them.
        memories: the memories of this model; none is attached afterwards.
    """
    memories.attach(None)
    seen: dict[tuple[int, str], Tensor] = {}
    handles = [
        getattr(attention, name).register_forward_hook(_remember(seen, (index, name)))
        for index, attention in attention_modules(model)
        for name in ("k_proj", "v_proj")
        if index in memories.layers
    ]
    try:
        device = model.get_input_embeddings().weight.device
        model.model(input_ids=torch.tensor([list(tokens)], device=device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return {
        index: (
            _by_head(seen[index, "k_proj"], memories.kv_shape(index)[0], getattr(attention, "k_norm", None)),
            _by_head(seen[index, "v_proj"], memories.kv_shape(index)[1], None),
        )
        for index, attention in attention_modules(model)
        if index in memories.layers
    }


def _remember(seen: dict[tuple[int, str], Tensor], key: tuple[int, str]) -> Any:
    def hook(_: Any, inputs: Any, output: Tensor) -> None:
        seen[key] = output

    return hook


def _by_head(states: Tensor, shape: torch.Size, norm: Any) -> Tensor:
    """[1, T, K * E] to [K, T, E], as attention sees it before rotation."""
    heads = states[0].reshape(-1, shape[0], shape[2])
    normed: Tensor = heads if norm is None else norm(heads)
    return normed.transpose(0, 1)


def start_from_text(memories: Memories, model: Any, domain: str, tokens: Sequence[int]) -> None:
    """Initialise the memory of `domain` with the first P of these tokens, repeated if there are fewer.

    Args:
        tokens: the domain's own text, as the model is trained on it.
    """
    count = memories.num_kv_tokens
    repeated = [tokens[place % len(tokens)] for place in range(count)]
    memories.set_kv(domain, text_memory(model, repeated, memories))
