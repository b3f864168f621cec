"""What koffkit knows of an architecture, as data: which weights form a removable unit, and where its gate
acts.

Gates, budget, slicing and memories all read these declarations; nothing else in the package asks for a model
type.

Legend: D hidden, F intermediate, N query heads, K KV heads, H head dim.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import UsageError

NO_STOCK = "no stock class"
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
    def of(cls, config: Mapping[str, Any], *, source: str = "config.json") -> Shape:
        """Read the sizes from a `config.json` object (defaults as transformers fills them in).

        Raises:
            UsageError: a size is missing, or not a number above zero.
        """
        for key in ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads"):
            if not isinstance(config.get(key), int) or config[key] < 1:
                raise UsageError(
                    f"{source}: {key}: {config.get(key)!r}; a positive whole number is needed. Is the "
                    "file whole?"
                )
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


Indices = NDArray[np.int64]
UnitOfChannel = Callable[[Shape], Indices]


def _each(size: Callable[[Shape], int], per_unit: Callable[[Shape], int]) -> UnitOfChannel:
    """Units of `per_unit` consecutive channels."""
    return lambda shape: np.arange(size(shape)) // per_unit(shape)


def _kv_channels(shape: Shape) -> Indices:
    return np.arange(shape.kv_heads * shape.head_dim)


def _query_channels(shape: Shape) -> Indices:
    """For every channel of the query heads the channel of the KV head that its head reads."""
    head, inside = np.divmod(np.arange(shape.query_heads * shape.head_dim), shape.head_dim)
    return head // shape.queries_per_kv * shape.head_dim + inside


def _pairs(channels: UnitOfChannel) -> UnitOfChannel:
    """The RoPE pair of each channel: i and i + H/2 of one KV head (the half-rotation layout of all supported
    families)."""

    def unit_of(shape: Shape) -> Indices:
        head, inside = np.divmod(channels(shape), shape.head_dim)
        found: Indices = head * (shape.head_dim // 2) + inside % (shape.head_dim // 2)
        return found

    return unit_of


PATTERNS: Mapping[str, UnitOfChannel] = {
    "neuron": _each(lambda s: s.intermediate, lambda s: 1),
    "residual": _each(lambda s: s.hidden, lambda s: 1),
    "kv head": _each(lambda s: s.kv_heads * s.head_dim, lambda s: s.head_dim),
    "query head": _each(lambda s: s.query_heads * s.head_dim, lambda s: s.queries_per_kv * s.head_dim),
    "kv pair": _pairs(_kv_channels),
    "query pair": _pairs(_query_channels),
    "kv channel": _kv_channels,
    "query channel": _query_channels,
}
"""How the channels of a tensor dimension belong to units: a `Cut` names one. Each gives the unit of every
channel."""


@dataclass(frozen=True, kw_only=True)
class Cut:
    """One tensor dimension that the units of a structure index.

    Args:
        module: linear module inside a decoder layer, for example `mlp.gate_proj`.
        side: `out` (rows of the weight, entries of the bias, rows of LoRA B) or `in` (columns of the weight,
            columns of LoRA A).
        pattern: which channels a unit owns, a key of `PATTERNS`.
    """

    module: str
    side: str
    pattern: str

    def unit_of_channel(self, shape: Shape) -> Indices:
        """The unit of every channel of this dimension, [channels]."""
        return PATTERNS[self.pattern](shape)

    def channels_per_unit(self, shape: Shape) -> int:
        return int((self.unit_of_channel(shape) == 0).sum())


@dataclass(frozen=True, kw_only=True)
class Structure:
    """A kind of removable unit (method, section 2).

    Args:
        name: the recipe's name for it.
        units: number of units in one layer.
        heads: the units are split evenly over this many KV heads, all of which keep the same count; 1: not by
            head.
        cuts: every weight dimension that goes with a unit.
        zeros: dimensions that are set to zero instead: masked, never counted as removed.
        gate: where the gate multiplies: the *input* of the unit's consumer (side `in`), or the *output* of a
            module (side `out`).
        paper_gates: where the paper gates the same unit, independently; the unit goes when one of these goes.
        kv_memory: the halves of the KV memory that units index, each as `(half, pattern)` over its [kv_heads
            * head_dim] channels.
    """

    name: str
    units: Callable[[Shape], int]
    heads: Callable[[Shape], int] = lambda shape: 1
    cuts: tuple[Cut, ...] = ()
    zeros: tuple[Cut, ...] = ()
    gate: Cut
    paper_gates: tuple[Cut, ...] = ()
    kv_memory: tuple[tuple[str, str], ...] = ()

    def num_units(self, shape: Shape) -> int:
        return self.units(shape)

    def gate_points(self) -> dict[str, Cut]:
        """Every place where gates of this structure can act, by the name of the gates: its own, then the
        paper's."""
        own = {self.name: self.gate}
        return own | {f"{self.name}@{cut.module.rpartition('.')[2]}": cut for cut in self.paper_gates}


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """One supported family.

    Args:
        model_type: `model_type` in `config.json`.
        layers: prefix of decoder layers, with `{i}` for the layer index.
        structures: what can be removed.
        refuses: structures that cannot be removed from this family, with the reason.
        head_pruned_container: stock model type that takes the sliced weights bit for bit when
            `hidden_size` is no longer `heads * head_dim`, because the family's own class refuses or misreads
            it; None: it does not;
            `NO_STOCK`: no stock class computes the same.
        reads_head_dim: whether stock software takes `head_dim` from this family's config; where it divides
            `hidden_size` by the heads instead, any head pruning needs the container.
        sets_head_dim: whether the family's class has a `head_dim` of its own where the config gives none,
            instead of dividing `hidden_size` by the heads.
        container_drops: config keys that the container does not know, with the only value that may be
            dropped; a model with another value needs koffkit's class.
        container_sets: config keys the container needs to behave like the original.
        biases: modules with a bias, each with the config key that switches it on (None: always there).
        layer_norms: norms of a decoder layer, each with the `Shape` attribute that is its size.
        logit_divisor: the config key that the family divides its logits by.
        must_be_unset: config keys for which the method is not exact, with the reason; a model that sets one
            is refused.
        ties_by_default: what a config without `tie_word_embeddings` means.
    """

    model_type: str
    layers: str = "model.layers.{i}."
    embeddings: str = "model.embed_tokens"
    final_norm: str = "model.norm.weight"
    layer_norms: Mapping[str, str] = field(default_factory=lambda: dict(TWO_NORMS))
    logit_divisor: str | None = None
    structures: Mapping[str, Structure]
    refuses: Mapping[str, str] = field(default_factory=dict)
    head_pruned_container: str | None = None
    reads_head_dim: bool = True
    sets_head_dim: bool = False
    head: str = "lm_head"
    container_drops: Mapping[str, Any] = field(default_factory=dict)
    container_sets: Mapping[str, Any] = field(default_factory=dict)
    biases: Mapping[str, str | None]
    must_be_unset: Mapping[str, str] = field(default_factory=dict)
    ties_by_default: bool = False

    def has_bias(self, module: str, config: Mapping[str, Any]) -> bool:
        """Whether a linear module of a decoder layer has a bias in this model."""
        if module not in self.biases:
            return False
        key = self.biases[module]
        return key is None or bool(config.get(key, False))

    def layer(self, index: int) -> str:
        return self.layers.format(i=index)
