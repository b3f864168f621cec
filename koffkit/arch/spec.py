"""What koffkit knows of an architecture, as data: which weights form a removable unit, and who consumes it.

Gates, budget, slicing and memories all read these declarations; nothing else in the package asks for a model type.

Legend: D hidden, F intermediate, N query heads, K KV heads, H head dim.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

TWO_NORMS = {"input_layernorm.weight": "hidden", "post_attention_layernorm.weight": "hidden"}


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The sizes of one model that declarations refer to by name."""

    num_layers: int
    hidden: int
    intermediate: int
    query_heads: int
    kv_heads: int
    head_dim: int

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Shape:
        """Read the sizes from a `config.json` object (defaults as transformers fills them in)."""
        heads = int(config["num_attention_heads"])
        return cls(
            num_layers=int(config["num_hidden_layers"]),
            hidden=int(config["hidden_size"]),
            intermediate=int(config["intermediate_size"]),
            query_heads=heads,
            kv_heads=int(config.get("num_key_value_heads") or heads),
            head_dim=int(config.get("head_dim") or int(config["hidden_size"]) // heads),
        )

    @property
    def queries_per_kv(self) -> int:
        return self.query_heads // self.kv_heads


@dataclass(frozen=True, kw_only=True)
class Cut:
    """One tensor dimension that the units of a structure index.

    Args:
        module: linear module inside a decoder layer, for example `mlp.gate_proj`.
        side: `out` (rows of the weight, entries of the bias, rows of LoRA B) or `in` (columns of the weight, columns of LoRA A).
        block: consecutive channels that one unit owns, as an attribute product of `Shape`: `1`, `head_dim` or
            `queries_per_kv*head_dim`.
    """

    module: str
    side: str
    block: str = "1"

    def channels_per_unit(self, shape: Shape) -> int:
        size = 1
        for factor in self.block.split("*"):
            size *= 1 if factor == "1" else int(getattr(shape, factor))
        return size


@dataclass(frozen=True, kw_only=True)
class Structure:
    """A kind of removable unit (method, section 2).

    Args:
        name: the recipe's name for it.
        units: the `Shape` attribute that counts its units in one layer.
        cuts: every weight dimension that goes with a unit.
        gate: the module whose *input* the gate scales (the consumer of the unit).
        config: config keys after slicing, as `(key, Shape attribute per kept unit)`.
        cuts_kv_memory: whether a unit owns one head of the KV memory.
    """

    name: str
    units: str
    cuts: tuple[Cut, ...]
    gate: Cut
    config: tuple[tuple[str, str], ...]
    cuts_kv_memory: bool = False

    def num_units(self, shape: Shape) -> int:
        return int(getattr(shape, self.units))


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """One supported family.

    Args:
        model_type: `model_type` in `config.json`.
        layers: prefix of decoder layers, with `{i}` for the layer index.
        structures: what can be removed.
        head_pruned_container: stock model type that takes the sliced weights bit for bit when
            `hidden_size` is no longer `heads * head_dim`, because the family's own class refuses or misreads it; None: it does not.
        reads_head_dim: whether stock software takes `head_dim` from this family's config; where it divides
            `hidden_size` by the heads instead, any head pruning needs the container.
        container_drops: config keys that the container does not know, with the only value that may be dropped silently.
        container_sets: config keys the container needs to behave like the original.
        biases: modules with a bias, each with the config key that switches it on (None: always there).
        layer_norms: norms of a decoder layer, each with the `Shape` attribute that is its size.
        logit_divisor: the config key that the family divides its logits by.
        ties_by_default: what a config without `tie_word_embeddings` means.
    """

    model_type: str
    layers: str = "model.layers.{i}."
    embeddings: str = "model.embed_tokens"
    final_norm: str = "model.norm.weight"
    layer_norms: Mapping[str, str] = field(default_factory=lambda: dict(TWO_NORMS))
    logit_divisor: str | None = None
    structures: Mapping[str, Structure]
    head_pruned_container: str | None = None
    reads_head_dim: bool = True
    head: str = "lm_head"
    container_drops: Mapping[str, Any] = field(default_factory=dict)
    container_sets: Mapping[str, Any] = field(default_factory=dict)
    biases: Mapping[str, str | None]
    ties_by_default: bool = False

    def has_bias(self, module: str, config: Mapping[str, Any]) -> bool:
        """Whether a linear module of a decoder layer has a bias in this model."""
        if module not in self.biases:
            return False
        key = self.biases[module]
        return key is None or bool(config.get(key, False))

    def layer(self, index: int) -> str:
        return self.layers.format(i=index)
