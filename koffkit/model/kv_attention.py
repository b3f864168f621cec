"""Attention with a learned KV memory, through the attention interface of transformers.

Every text position sees all P memory tokens; the text stays causal and keeps its own position ids; memory
keys are not rotated (method, section 5). Layers without a memory compute exactly what stock `sdpa` computes.

Legend: B batch, T query tokens, S key tokens, N query heads, K KV heads, H head dim, P memory tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from .per_call import of_this_call

NAME = "koffkit"
_SLOT = "koffkit_kv"


@dataclass(frozen=True)
class KVMemory:
    """The memory of one layer.

    Args:
        key, value: [K, P, H], shared by all rows of a batch, or [B, K, P, H], one for each row.
        visible: [B, P] boolean, False where a row of a mixed batch has no such memory token; None = all
            visible.
    """

    key: Tensor
    value: Tensor
    visible: Tensor | None = None

    def to(self, device: torch.device) -> KVMemory:
        """The same memory on a device."""
        visible = None if self.visible is None else self.visible.to(device)
        return KVMemory(self.key.to(device), self.value.to(device), visible)


def koffkit_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """Stock `sdpa` attention over `[memory; text]`.

    Args:
        query: [B, N, T, H], rotated. key, value: [B, K, S, H], key rotated.
        attention_mask: None (causal), or [B or 1, 1 or N, T, S], boolean or additive.

    Returns:
        [B, T, N, H] and None, as transformers expects.
    """
    memory: KVMemory | None = of_this_call(module) or getattr(module, _SLOT, None)
    if memory is None:
        output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
        return output, None
    num_queries = query.shape[2]
    if attention_mask is None and 1 < num_queries < key.shape[2]:
        # Prefill of a static cache: the slots after the text are empty, and only plain `is_causal` would hide
        # them.
        key, value = key[:, :, :num_queries], value[:, :, :num_queries]
    num_memory = memory.key.shape[-2]
    if attention_mask is not None:
        attention_mask = _widen(attention_mask[..., : key.shape[2]], num_memory)
    elif num_queries > 1:
        attention_mask = _causal_with_memory(num_queries, num_memory, query.device)
    if memory.visible is not None:
        attention_mask = _hide(memory.visible, attention_mask, query, num_memory + key.shape[2])
    key = torch.cat([_batched(memory.key, key), key], dim=2)
    value = torch.cat([_batched(memory.value, value), value], dim=2)
    output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    return output, None


def _batched(memory: Tensor, like: Tensor) -> Tensor:
    """[K, P, H] or [B, K, P, H] to the batch of `like`, which generation may have repeated."""
    memory = memory.to(like.dtype)
    if memory.dim() == 3:
        return memory.unsqueeze(0).expand(like.shape[0], -1, -1, -1)
    repeats = like.shape[0] // memory.shape[0]
    return memory if repeats == 1 else memory.repeat_interleave(repeats, dim=0)


def _widen(mask: Tensor, num_memory: int) -> Tensor:
    visible = mask.new_full((*mask.shape[:-1], num_memory), True if mask.dtype == torch.bool else 0.0)
    return torch.cat([visible, mask], dim=-1)


def _hide(visible: Tensor, mask: Tensor | None, query: Tensor, width: int) -> Tensor:
    """The mask [B, 1, T, P + S] of a batch whose rows have different memories."""
    rows = visible.repeat_interleave(query.shape[0] // visible.shape[0], dim=0)
    allowed = torch.ones(rows.shape[0], 1, 1, width, dtype=torch.bool, device=query.device)
    allowed[:, 0, 0, : rows.shape[1]] = rows.to(query.device)
    if mask is None:
        return allowed.expand(-1, -1, query.shape[2], -1)
    if mask.dtype == torch.bool:
        return mask & allowed
    return mask.masked_fill(~allowed, torch.finfo(mask.dtype).min)


@lru_cache(maxsize=16)
def _causal_with_memory(num_queries: int, num_memory: int, device: torch.device) -> Tensor:
    """[1, 1, T, P + T] boolean, True = visible."""
    mask = torch.ones(num_queries, num_memory + num_queries, dtype=torch.bool, device=device)
    return mask.tril(diagonal=num_memory)[None, None]


# Without a mask function of the same name transformers passes no mask at all and padding is silently ignored.
AttentionInterface.register(NAME, koffkit_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)


def use_koffkit_attention(model: nn.Module) -> None:
    """Switch a model (plain or wrapped by peft) to attention with KV memories."""
    transformer(model).set_attn_implementation(NAME)


def set_kv_memory(model: nn.Module, memory: Mapping[int, KVMemory] | None) -> None:
    """Attach `{layer: memory}`, or detach with None, for all threads. Gradients flow to the tensors given.

    For training, and for models that are not shared between threads; otherwise use `kv_of_call`.

    Args:
        model: the transformers model, with koffkit's attention.
        memory: by layer; None: no memory.
    """
    for index, module in attention_modules(model):
        setattr(module, _SLOT, None if memory is None else memory.get(index))


def kv_of_call(model: nn.Module, memory: Mapping[int, KVMemory] | None) -> dict[nn.Module, KVMemory]:
    """`{layer: memory}` as the state of a call (`for_this_call`)."""
    return {
        module: memory[index]
        for index, module in attention_modules(model)
        if memory is not None and index in memory
    }


def attention_modules(model: nn.Module) -> Iterator[tuple[int, nn.Module]]:
    """`(layer index, attention module)` of every decoder layer."""
    for index, layer in enumerate(transformer(model).model.layers):
        yield index, layer.self_attn


def transformer(model: Any) -> Any:
    """The transformers model under an optional peft wrapper."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model
