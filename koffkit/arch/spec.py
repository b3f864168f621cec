"""What koffkit knows of an architecture, as data: which weights form a removable unit, and where its gate
acts.

Gates, budget, slicing and memories all read these declarations; nothing else in the package asks for a model
type.

Legend: D hidden, F intermediate, N query heads, K KV heads, H head dim.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .. import plugins
from ..errors import UsageError

# What transformers assumes when a config omits a size, for families where no other size implies it.
HEAD_DIM = {"qwen3": 128, "gemma3_text": 256}
KV_HEADS = {"mistral": 8, "smollm3": 4, "gemma3_text": 4, "qwen2": 32, "qwen3": 32}
NO_STOCK = "no stock class"
LINEAR_MODULES = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)
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
            UsageError: a size is missing, or is not a positive whole number.
        """
        for key in ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads"):
            if not isinstance(config.get(key), int) or config[key] < 1:
                raise UsageError(
                    f"{source}: {key}: {config.get(key)!r}; a positive whole number is needed. Is the "
                    "file complete?"
                )
        heads = int(config["num_attention_heads"])
        missing = KV_HEADS.get(str(config.get("model_type"))) if "num_key_value_heads" not in config else None
        return cls(
            num_layers=int(config["num_hidden_layers"]),
            hidden=int(config["hidden_size"]),
            intermediate=int(config["intermediate_size"]),
            query_heads=heads,
            kv_heads=int(config.get("num_key_value_heads") or missing or heads),
            head_dim=int(
                config.get("head_dim")
                or HEAD_DIM.get(str(config.get("model_type")))
                or int(config["hidden_size"]) // heads
            ),
        )

    @property
    def queries_per_kv(self) -> int:
        return self.query_heads // self.kv_heads


Indices = NDArray[np.int64]
UnitOfChannel = Callable[[Shape], Indices]
"""A pattern: the unit of every channel of a tensor dimension, [channels]. The usual ones are in
`koffkit.arch.patterns`."""


@dataclass(frozen=True, kw_only=True)
class Cut:
    """One tensor dimension that the units of a structure index.

    Args:
        module: linear module inside a decoder layer, for example `mlp.gate_proj`.
        side: `out` (rows of the weight, entries of the bias, rows of LoRA B) or `in` (columns of the weight,
            columns of LoRA A).
        pattern: which channels a unit owns.
    """

    module: str
    side: Literal["out", "in"]
    pattern: UnitOfChannel

    def unit_of_channel(self, shape: Shape) -> Indices:
        """The unit of every channel of this dimension, [channels]."""
        return self.pattern(shape)

    def channels_per_unit(self, shape: Shape) -> int:
        return int((self.unit_of_channel(shape) == 0).sum())


@dataclass(frozen=True, kw_only=True)
class Structure:
    """A kind of removable unit (method, section 2).

    Args:
        name: the recipe's name for it.
        units: number of units in one layer.
        heads: the units are split evenly over this many KV heads, all of which keep the same count; 1: not
            split.
        cuts: every weight dimension that goes with a unit.
        masked_cuts: dimensions that are set to zero instead: they stay, and never count as removed.
        gate: where the gate multiplies: the *input* of the unit's consumer (side `in`), or the *output* of a
            module (side `out`).
        paper_gates: where the paper gates the same unit, independently; the unit goes when one of these goes.
        kv_memory: the halves of the KV memory that units index, each as `(half, pattern)` over its [kv_heads
            * head_dim] channels.
        takes_multiple_of: whether the recipe's `mask.multiple_of` applies to its counts.
        paper_position: its place in the preset `mask.structures: paper`; None: not part of it.
    """

    name: str
    units: Callable[[Shape], int]
    heads: Callable[[Shape], int] = lambda shape: 1
    cuts: tuple[Cut, ...] = ()
    masked_cuts: tuple[Cut, ...] = ()
    gate: Cut
    paper_gates: tuple[Cut, ...] = ()
    kv_memory: tuple[tuple[Literal["key", "value"], UnitOfChannel], ...] = ()
    takes_multiple_of: bool = False
    paper_position: int | None = None

    def num_units(self, shape: Shape) -> int:
        return self.units(shape)

    def step_units(self, shape: Shape, multiple_of: int) -> int:
        """Units of a layer that are removed together: one of every KV head, times `multiple_of` where it
        applies."""
        return self.heads(shape) * (multiple_of if self.takes_multiple_of else 1)

    def modules(self) -> set[str]:
        """The modules of a decoder layer that this structure needs."""
        return {cut.module for cut in (*self.cuts, *self.masked_cuts, self.gate, *self.paper_gates)}

    def clash(self, other: Structure) -> Cut | None:
        """A cut of this structure that conflicts with another structure, if there is one.

        Two structures must not index the same dimension of a weight, and one must not cut the rows of a
        weight whose columns the other one cuts: what both remove would be counted twice.
        """
        touched = {(cut.module, cut.side) for cut in (*other.cuts, *other.masked_cuts)}
        removed = {cut.module for cut in other.cuts}
        shared = [cut for cut in (*self.cuts, *self.masked_cuts) if (cut.module, cut.side) in touched]
        return next(iter([*shared, *(cut for cut in self.cuts if cut.module in removed)]), None)

    def gate_points(self) -> dict[str, Cut]:
        """Every place where gates of this structure can act, by the name of the gates: its own, then the
        paper's."""
        own = {self.name: self.gate}
        return own | {f"{self.name}@{cut.module.rpartition('.')[2]}": cut for cut in self.paper_gates}


def installed_structures() -> dict[str, Structure]:
    """Every installed structure by name, those of other packages included."""
    group = plugins.STRUCTURES
    return {name: plugins.load(group, name, "mask.structures") for name in plugins.names(group)}


_SMALL = Shape(num_layers=1, hidden=8, intermediate=8, query_heads=2, kv_heads=2, head_dim=4)


def divides_heads(name: str) -> bool:
    """Whether a structure removes parts of heads, which no stock class holds."""
    patterns = [pattern for _, pattern in installed_structures()[name].kv_memory]
    halves = [pattern(_SMALL).reshape(_SMALL.kv_heads, -1) for pattern in patterns]
    return any(bool((units != units[:, :1]).any()) for units in halves)


PAPER_ABLATIONS = {"paper_qkv": ["q_k_pair", "v_channel"], "paper_mlp": ["mlp_neuron", "mlp_output"]}
"""The presets of the paper's ablations (its Tables 12 and 6)."""


def paper_structures(preset: str = "paper") -> list[str]:
    """The structures of a preset. With `paper`, the paper gates the outputs of k, v, gate, up and down (its
    section 3): the structures that say so, neurons through their `paper_gates`."""
    if preset in PAPER_ABLATIONS:
        return list(PAPER_ABLATIONS[preset])
    places = {
        name: structure.paper_position
        for name, structure in installed_structures().items()
        if structure.paper_position is not None
    }
    return sorted(places, key=lambda name: places[name])


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """One supported family.

    Args:
        model_type: `model_type` in `config.json`.
        layers: prefix of decoder layers, with `{i}` for the layer index.
        modules: the linear modules of a decoder layer. Every installed structure that needs no others can be
            removed.
        refuses: structures that cannot be removed from this family, with the reason.
        head_pruned_container: stock model type that takes the sliced weights bit for bit when
            `hidden_size` is no longer `heads * head_dim`, because the family's own class refuses or misreads
            it; None: it does not; `NO_STOCK`: no stock class computes the same.
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
        must_be_unset: config keys for which the method would not be exact, with the reason; a model that sets
            one is refused.
        ties_by_default: what a config without `tie_word_embeddings` means.
    """

    model_type: str
    layers: str = "model.layers.{i}."
    embeddings: str = "model.embed_tokens"
    final_norm: str = "model.norm.weight"
    layer_norms: Mapping[str, str] = field(default_factory=lambda: dict(TWO_NORMS))
    logit_divisor: str | None = None
    modules: tuple[str, ...] = LINEAR_MODULES
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

    @cached_property
    def structures(self) -> Mapping[str, Structure]:
        """The installed structures whose modules this family has, those that it refuses included."""
        installed = installed_structures().items()
        return {name: structure for name, structure in installed if structure.modules() <= {*self.modules}}

    def has_bias(self, module: str, config: Mapping[str, Any]) -> bool:
        """Whether a linear module of a decoder layer has a bias in this model."""
        if module not in self.biases:
            return False
        key = self.biases[module]
        return key is None or bool(config.get(key, False))

    def layer(self, index: int) -> str:
        return self.layers.format(i=index)
