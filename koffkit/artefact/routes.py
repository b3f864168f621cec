"""Which software carries an artefact. Every exporter declares what it can carry (`Carries`), and what there
is (`Facts`) is held against it: before anything is learned, before anything is written, and in `koffkit
inspect`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ..arch.spec import Shape
from ..arch.widths import LayerWidths

SLIDING = "sliding_attention"
AS_HF = "export with --format hf"
WHOLE = "learn with mask.layout: uniform and whole heads"
NO_KV = "learn with memory.kv: null"


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a backbone and its memories are like.

    Attributes:
        family: `model_type` of the backbone's class, without koffkit's prefix; None: not known yet.
        own_class: no stock class holds the backbone.
        neurons_differ: layers have different numbers of neurons.
        heads_differ: layers have different numbers of heads.
        heads_divided: parts of heads are gone.
        heads_fewer: some layers have fewer KV heads than the base.
        sliding: some layers attend to a window of the text only.
        ranks: LoRA ranks of the memories; empty: they have no LoRA.
        kv: layers with a KV memory: all, some of them, or none.
        neurons: memories give neurons back.
    """

    family: str | None
    own_class: bool
    neurons_differ: bool
    heads_differ: bool
    heads_divided: bool
    heads_fewer: bool
    sliding: bool
    ranks: frozenset[int]
    kv: Literal["all", "some", "none"]
    neurons: bool


def _among(families: frozenset[str], family: str | None) -> bool:
    """Whether a family is one of them; one that is not known yet may be."""
    return bool(families) if family is None else family in families


@dataclass(frozen=True, kw_only=True)
class Carries:
    """What a format can carry.

    Attributes:
        what: what its folder is for, in a few words.
        families: stock model types that it was run with; None: all that transformers has.
        own_class: it carries backbones of koffkit's class, of any width.
        ragged_neurons: families of which it carries layers with different numbers of neurons.
        ragged_heads: the same of heads; parts of heads are another matter.
        lora: it carries LoRA.
        largest_rank: of LoRA; None: any.
        kv: which KV memories it carries: in any layers, in all layers only, or none.
        no_kv_in: families whose KV memories it does not carry.
        kv_in_ragged_heads: it carries them where layers have different numbers of heads, or parts of heads.
        heads_of_config: it takes their number of heads from `config.json`, which has the base's in koffkit's
            class.
        neurons: it carries neurons that memories give back.
        merges: it has the option `merge`; a format without it is for adapters, of which a merged memory
            leaves none, and format hf has it.
    """

    what: str
    families: frozenset[str] | None = None
    own_class: bool = False
    ragged_neurons: frozenset[str] = frozenset()
    ragged_heads: frozenset[str] = frozenset()
    lora: bool = True
    largest_rank: int | None = None
    kv: Literal["any", "all", "none"] = "none"
    no_kv_in: frozenset[str] = frozenset()
    kv_in_ragged_heads: bool = False
    heads_of_config: bool = False
    neurons: bool = False
    merges: bool = True

    def obstacles(self, facts: Facts) -> list[str]:
        """What this format cannot carry, each with the remedy; empty: it carries everything."""
        return [*self._of_backbone(facts), *self._of_memories(facts)]

    def _of_backbone(self, facts: Facts) -> Iterator[str]:
        differ = facts.heads_differ and not _among(self.ragged_heads, facts.family)
        if not self.own_class and (differ or facts.heads_divided):
            what = (
                "parts of heads are gone" if facts.heads_divided else "layers keep different numbers of heads"
            )
            yield f"{what}, which it cannot express; {AS_HF}, or {WHOLE}"
        elif not self.own_class and facts.neurons_differ and not _among(self.ragged_neurons, facts.family):
            yield (
                "layers keep different numbers of neurons, which it cannot express for this family; "
                f"{AS_HF}, or learn with mask.layout: uniform"
            )
        elif not self.own_class and facts.own_class and not (facts.neurons_differ or facts.heads_differ):
            yield f"no stock class computes this backbone; {AS_HF}, or keep all heads"
        if self.families is not None and facts.family is not None and facts.family not in self.families:
            yield f"a backbone of {facts.family}, which was not run there; {AS_HF}"

    def _of_memories(self, facts: Facts) -> Iterator[str]:
        ragged = facts.heads_differ or facts.heads_divided
        if facts.neurons and not self.neurons:
            yield (
                "memories give neurons back, which only koffkit adds at run time; make one of them part "
                f"of the weights with {'' if self.merges else '--format hf '}--merge NAME, or {AS_HF}"
            )
        if facts.ranks and not self.lora:
            yield f"memories have LoRA, which it has no way in for; {AS_HF}"
        if self.largest_rank is not None and max(facts.ranks, default=0) > self.largest_rank:
            most = f"LoRA of rank {max(facts.ranks)}, but its largest is {self.largest_rank}"
            yield f"{most}; learn a smaller memory.lora.rank"
        if facts.kv == "none" or self.kv == "any":
            return
        if self.kv == "none":
            yield f"KV memories, which it has no way in for; {AS_HF}, or {NO_KV}"
        elif facts.kv == "some":
            yield f"KV memory in some layers only; {AS_HF}, or learn with memory.layers: all"
        elif facts.sliding:
            yield f"layers with a sliding window would forget the KV memory; {AS_HF}, or {NO_KV}"
        elif facts.family in self.no_kv_in:
            yield f"KV memories in a backbone of {facts.family}; {AS_HF}, or {NO_KV}"
        elif ragged and not self.kv_in_ragged_heads:
            yield f"a KV memory for heads that differ; {AS_HF}, or {WHOLE}"
        elif self.heads_of_config and facts.own_class and facts.heads_fewer:
            yield f"a KV memory for fewer heads than the base's in layers that differ; {AS_HF}, or {WHOLE}"


def width_facts(widths: Sequence[LayerWidths], shape: Shape) -> dict[str, bool]:
    """The facts that follow from the widths of the layers.

    Args:
        widths: of every layer.
        shape: of the base.
    """
    whole = {shape.head_dim}
    return {
        "neurons_differ": len({layer.intermediate for layer in widths}) > 1,
        "heads_differ": len({layer.kv_heads for layer in widths}) > 1,
        "heads_divided": any({layer.key_channels, layer.value_channels} != whole for layer in widths),
        "heads_fewer": any(layer.kv_heads < shape.kv_heads for layer in widths),
    }


def has_window(config: Mapping[str, Any]) -> bool:
    """Whether some layers attend to less than the longest text, by a `config.json`."""
    window, positions = config.get("sliding_window"), config.get("max_position_embeddings")
    kinds = config.get("layer_types") or [SLIDING]
    if window is None or not config.get("use_sliding_window", True) or SLIDING not in kinds:
        return False
    return positions is None or int(window) < int(positions)


def kv_facts(num_layers: int, layers_with_kv: Sequence[int]) -> Literal["all", "some", "none"]:
    """`Facts.kv` of memories, each with KV in so many layers.

    Args:
        num_layers: of the backbone.
        layers_with_kv: for each memory with a KV half, how many layers have one.
    """
    if not layers_with_kv:
        return "none"
    return "all" if set(layers_with_kv) == {num_layers} else "some"
