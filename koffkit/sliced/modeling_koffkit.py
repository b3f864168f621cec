"""Causal language models whose layers differ in width: what structured pruning with free per-layer counts
leaves of a stock model.

This file ships inside checkpoints and needs torch and transformers only. Every class is the family's own
class with narrower linear layers; where parts of attention heads are gone, attention keeps the original
scale, the rotary frequencies of the pairs that are left, and a key-value cache as narrow as the heads.

`config.sliced_layers` has one object a layer: `intermediate` (neurons), `kv_heads` (each with all its query
heads), `rope_pairs` (for each KV head a hexadecimal bit mask of the rotary pairs that are left; null: all)
and `value_channels` (of one head).

Legend: B batch, T tokens, K KV heads, G query heads of one KV head, H original head dim, E key channels of a
head, C value channels.
"""

from __future__ import annotations

import sys
from functools import cache
from typing import Any

import torch
import transformers
from torch import nn
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

PREFIX = "koffkit_"


def rotate(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate [B, heads, T, E] by angles of the same shape: channel i together with channel i + E / 2.

    Args:
        states: [B, heads, T, E].
        cos: of the angles, [B, heads, T, E].
        sin: likewise.
    """
    half = states.shape[-1] // 2
    turned = torch.cat([-states[..., half:], states[..., :half]], dim=-1)
    return states * cos + turned * sin


class SlicedAttention:
    """The forward pass of an attention layer whose heads lost rotary pairs or value channels. Mixed into the
    family's own class."""

    rope_channels: list[list[int]] | None
    rope_index: torch.Tensor | None = None  # the same on the device in use
    key_channels: int
    value_channels: int

    def forward(
        self: Any,
        hidden_states: torch.Tensor,
        position_embeddings: Any = None,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Any = None,
        cache: Any = None,  # what past_key_values is called from transformers 5.24 on
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        shape = hidden_states.shape[:-1]
        query = self.q_proj(hidden_states).view(*shape, -1, self.key_channels)
        key = self.k_proj(hidden_states).view(*shape, -1, self.key_channels)
        value = self.v_proj(hidden_states).view(*shape, -1, self.value_channels).transpose(1, 2)
        if hasattr(self, "q_norm"):
            query, key = self.q_norm(query), self.k_norm(key)
        query, key = query.transpose(1, 2), key.transpose(1, 2)
        if getattr(self, "use_rope", True):
            query, key = self._rotate(query, key, *position_embeddings)
        cache = past_key_values if cache is None else cache
        if cache is not None:
            key, value = cache.update(key, value, self.layer_idx)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention)
        dropout = self.attention_dropout if self.training else 0.0
        if getattr(self, "sliding_window", None) is not None:
            kwargs["sliding_window"] = self.sliding_window
        output, weights = attend(
            self, query, key, value, attention_mask, dropout=dropout, scaling=self.scaling, **kwargs
        )
        return self.o_proj(output.reshape(*shape, -1).contiguous()), weights

    def _rotate(
        self: Any, query: torch.Tensor, key: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if self.rope_channels is None:
            return rotate(query, cos.unsqueeze(1), sin.unsqueeze(1)), rotate(
                key, cos.unsqueeze(1), sin.unsqueeze(1)
            )
        if self.rope_index is None or self.rope_index.device != cos.device:
            self.rope_index = torch.tensor(self.rope_channels, device=cos.device)
        cos, sin = (angles[..., self.rope_index].transpose(1, 2) for angles in (cos, sin))  # [B, K, T, E]
        groups = query.shape[1] // key.shape[1]
        return rotate(query, cos.repeat_interleave(groups, 1), sin.repeat_interleave(groups, 1)), rotate(
            key, cos, sin
        )


def eager_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Plain attention: [B, K * G, T, E] against [B, K, S, E] and [B, K, S, C]; returns [B, T, K * G, C] and
    the weights."""
    groups = module.num_key_value_groups
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = query @ key.transpose(2, 3) * scaling
    if mask is not None:
        scores = scores + mask
    weights = nn.functional.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


def _narrow(parent: nn.Module, name: str, inputs: int, outputs: int) -> None:
    """Replace a linear layer by a narrower one."""
    old = getattr(parent, name)
    if (old.in_features, old.out_features) != (inputs, outputs):
        weight = old.weight
        setattr(
            parent,
            name,
            nn.Linear(inputs, outputs, bias=old.bias is not None, device=weight.device, dtype=weight.dtype),
        )


def narrow_layer(layer: Any, spec: dict[str, Any]) -> None:
    """Give one decoder layer the widths of `spec`."""
    attention, mlp = layer.self_attn, layer.mlp
    hidden, head_dim, groups = mlp.gate_proj.in_features, attention.head_dim, attention.num_key_value_groups
    masks = spec.get("rope_pairs")
    pairs = (
        None
        if masks is None
        else [[i for i in range(head_dim // 2) if int(mask, 16) >> i & 1] for mask in masks]
    )
    key_channels = head_dim if pairs is None else 2 * len(pairs[0])
    value_channels, heads = spec["value_channels"], spec["kv_heads"]
    _narrow(mlp, "gate_proj", hidden, spec["intermediate"])
    _narrow(mlp, "up_proj", hidden, spec["intermediate"])
    _narrow(mlp, "down_proj", spec["intermediate"], hidden)
    _narrow(attention, "q_proj", hidden, heads * groups * key_channels)
    _narrow(attention, "k_proj", hidden, heads * key_channels)
    _narrow(attention, "v_proj", hidden, heads * value_channels)
    _narrow(attention, "o_proj", heads * groups * value_channels, hidden)
    if (key_channels, value_channels) != (head_dim, head_dim):
        attention.__class__ = _sliced(attention.__class__)
        attention.key_channels, attention.value_channels = key_channels, value_channels
        attention.rope_channels = (
            None if pairs is None else [[*kept, *(i + head_dim // 2 for i in kept)] for kept in pairs]
        )


@cache
def _sliced(attention: Any) -> type:
    return type(f"Sliced{attention.__name__}", (SlicedAttention, attention), {})


@cache
def classes(family: str) -> tuple[type, type]:
    """The config class and the model class that narrow the stock ones of a model type."""
    stock_config: Any = CONFIG_MAPPING[family]
    stock_model: Any = MODEL_FOR_CAUSAL_LM_MAPPING[stock_config]

    def init(self: Any, config: Any) -> None:
        stock_model.__init__(self, config)
        for layer, spec in zip(self.model.layers, config.sliced_layers, strict=True):
            narrow_layer(layer, spec)

    here = {"__module__": __name__}
    config_class = type(
        f"Koff{stock_config.__name__}", (stock_config,), here | {"model_type": PREFIX + family}
    )
    fields = here | {"__init__": init, "config_class": config_class, "config": config_class}
    return config_class, type(f"Koff{stock_model.__name__}", (stock_model,), fields)


def __getattr__(name: str) -> Any:
    """`Koff...Config` and `Koff...ForCausalLM`, made when they are asked for: only one family's code is
    imported."""
    stock = getattr(transformers, name.removeprefix("Koff"), None) if name.startswith("Koff") else None
    if stock is None:
        raise AttributeError(f"module {sys.modules[__name__].__name__!r} has no attribute {name!r}")
    config = getattr(stock, "config_class", None) or stock
    return next(made for made in classes(config.model_type) if made.__name__ == name)
