"""The rows of an ablation: named changes of a recipe. `ROWS` is the one place that knows them."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from .. import plugins
from ..errors import UsageError, near_name
from . import changes
from .changes import Change, Setting, Tree, fields
from .equal_size import COMBINATIONS, of_equal_size


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row.

    Args:
        meaning: a few words. change: changes the recipe, a tree of plain values, in place. unpruned: memories
        are learned for the unpruned base: there is no mask, and stages begin with `recover`.
    """

    meaning: str
    change: Change
    unpruned: bool = False

    def of(self, tree: Mapping[str, Any], setting: Setting) -> Tree:
        """The changed recipe.

        Raises:
            UsageError: the row makes no sense for this recipe.
        """
        changed = deepcopy(dict(tree))
        self.change(changed, setting)
        return changed


def _one_shot_rows() -> dict[str, Row]:
    rows = {}
    for name in plugins.names(plugins.SELECTORS):
        rows[f"one_shot_{name}"] = Row(
            meaning=f"mask of selector {name}, then recovery", change=changes.one_shot(name, recovery=True)
        )
        rows[f"one_shot_{name}_bare"] = Row(
            meaning=f"mask of selector {name}, no memory", change=changes.one_shot(name, recovery=False)
        )
    return rows


ROWS: dict[str, Row] = {
    "koff": Row(meaning="the recipe as it is", change=changes.nothing),
    "pruning_only": Row(meaning="no memory", change=changes.no_memory),
    "lora_only": Row(meaning="memories of LoRA alone", change=changes.only("lora")),
    "kv_only": Row(meaning="memories of KV alone", change=changes.only("kv")),
    "neurons_only": Row(meaning="memories of neurons alone", change=changes.only("neurons")),
    "prune_then_recover": Row(meaning="masks first, then memories", change=changes.prune_then_recover),
    "prune_less": Row(
        meaning="no memory, less pruned: loaded parameters of backbone + one memory",
        change=changes.prune_less,
    ),
    "restored_neurons": Row(
        meaning="removed neurons of the memory's bytes, untrained", change=changes.restored_neurons
    ),
    "unpruned_lora": Row(
        meaning="a LoRA for each domain on the unpruned base, of one memory's bytes",
        change=changes.unpruned_lora,
        unpruned=True,
    ),
    "random_memory": Row(meaning="a KV memory of random numbers, untrained", change=changes.random_memory),
    "random_start": Row(
        meaning="the KV memory begins as random numbers", change=fields(memory__kv__init="random")
    ),
    "upper_layers": Row(meaning="memory in the upper 60 % of the layers", change=changes.upper_layers),
    "all_layers": Row(meaning="memory in all layers", change=changes.all_layers),
    "learned_layers": Row(meaning="half the memory's bytes, layers learned", change=changes.learned_layers),
    "no_retention": Row(meaning="no retention text", change=fields(retention=None)),
    "cross_entropy": Row(meaning="loss: the text itself (SFT)", change=changes.another_loss("cross_entropy")),
    "blended": Row(meaning="loss: KL and text blended", change=changes.another_loss("blended")),
    "full_kl": Row(meaning="loss: full KL", change=changes.another_loss("full")),
    "uniform": Row(meaning="equal counts in every layer", change=fields(mask__layout="uniform")),
    "ragged": Row(meaning="free counts in every layer", change=fields(mask__layout="ragged")),
    "paper_gates": Row(
        meaning="the paper's independent gates, ragged",
        change=fields(mask__structures="paper", mask__layout="ragged"),
    ),
    "top_k_gates": Row(meaning="deterministic gates", change=fields(mask__gates="top_k")),
    "cold_gates": Row(meaning="gates start alike", change=fields(mask__init="cold")),
    "warm_taylor": Row(meaning="gates start by Taylor saliency", change=fields(mask__init="taylor")),
    "warm_activation": Row(meaning="gates start by activation norm", change=fields(mask__init="activation")),
    "warm_fisher": Row(meaning="gates start by Fisher information", change=fields(mask__init="fisher")),
    "progressive": Row(meaning="a target that sinks", change=fields(mask__controller="progressive")),
    "lagrangian": Row(meaning="a Lagrangian", change=fields(mask__controller="lagrangian")),
    "annealed": Row(
        meaning="a temperature that falls", change=fields(mask__temperature={"start": 1.0, "end": 0.3})
    ),
    "repair_bias": Row(meaning="biases for what is gone", change=fields(mask__repair="bias")),
    "repair_least_squares": Row(
        meaning="new output projections for what is gone", change=fields(mask__repair="least_squares")
    ),
    **_one_shot_rows(),
    **{
        name: Row(meaning=f"memories of {' and '.join(parts)} alone, same size", change=of_equal_size(name))
        for name, parts in COMBINATIONS.items()
    },
}
"""Every row by name."""

DEFAULT = (
    "koff",
    "pruning_only",
    "prune_less",
    "restored_neurons",
    "prune_then_recover",
    "random_memory",
    "one_shot_activation",
    "unpruned_lora",
)
"""What a table should not be without; those that make no sense for a recipe are left out of it."""


def find_row(name: str) -> Row:
    """A row by its name.

    Raises:
        UsageError: there is none of this name.
    """
    if name not in ROWS:
        raise UsageError(f"--rows: no row {name!r}; {near_name(name, ROWS)}")
    return ROWS[name]
