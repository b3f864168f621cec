"""What the page is made of: plain values, wherever they come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Cut:
    """How much of one place in one layer is gone.

    Args:
        place: a projection (`mlp.gate_proj`) or a structure (`mlp_neuron`).
        layer: index of the decoder layer.
        kept, total: of a projection weights, of a structure units.
    """

    place: str
    layer: int
    kept: int
    total: int

    @property
    def removed(self) -> float:
        """The share that is gone."""
        return 1 - self.kept / self.total if self.total else 0.0


@dataclass(frozen=True, kw_only=True)
class Planned:
    """One thing that the plan foresaw, beside what came of it; texts, `-` where one is not known."""

    what: str
    planned: str
    actual: str


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Bytes of weights.

    Args:
        base, backbone: of the unpruned and of the sliced model.
        memories: by domain.
        break_even: with how many memories of this size the whole is as large as the base; None: there are no
            memories.
        estimated: the figures are the plan's; nothing is exported yet.
    """

    base: int
    backbone: int
    memories: Mapping[str, int]
    break_even: int | None
    estimated: bool

    @property
    def total(self) -> int:
        """Of the backbone with all memories."""
        return self.backbone + sum(self.memories.values())


@dataclass(frozen=True, kw_only=True)
class Completion:
    """How one prompt goes on under every condition.

    Args:
        domain: the domain of the prompt.
        prompt: held-out text.
        continued: by condition (`unpruned`, `backbone`, `matched`, `wrong: NAME`); with `text` for what the
            document says.
    """

    domain: str
    prompt: str
    continued: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class PageFacts:
    """Everything that the page shows; what is empty is left out.

    Args:
        kind: `run` or `export`.
        title: the recipe's name.
        about: what it is in a few pairs of words: base, layout, when it was made.
        results: figures by stage, as `results` of `run.json`.
        sparsity: share of the base's parameters that is gone; `target`: that the recipe asked for.
        base_parameters, removed_parameters: how many there were, and how many are gone.
        projections, structures: what was removed where.
        steps: figures of training steps in their order: `step` (counted across stages), `stage`, and any of
            `kl`, `loss`, `heldout_kl`, `expected_sparsity`, `sparsity`.
        steps_to_target: the first step of `learn_masks` whose gates were within tolerance of the target; 0:
            none was; None: not known.
        plan: planned against actual.
        sizes: bytes.
        analyses: what `koffkit.analysis` found.
        completions: texts side by side.
        loading: how to load it: what, and the lines to type.
        notes: what the reader should know about gaps.
    """

    kind: str
    title: str
    about: Mapping[str, str]
    results: Mapping[str, Any]
    sparsity: float
    target: float
    base_parameters: int
    removed_parameters: int
    projections: Sequence[Cut] = ()
    structures: Sequence[Cut] = ()
    steps: Sequence[Mapping[str, Any]] = ()
    steps_to_target: int | None = None
    plan: Sequence[Planned] = ()
    sizes: Sizes | None = None
    analyses: Mapping[str, Any] = field(default_factory=dict)
    completions: Sequence[Completion] = ()
    loading: Sequence[tuple[str, str]] = ()
    notes: Sequence[str] = ()
