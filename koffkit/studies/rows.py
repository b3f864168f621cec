"""The rows of an ablation: named changes of a recipe. `ROWS` is the one place that knows them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from .. import plugins
from ..checkpoint.spec import ModelSpec
from ..errors import UsageError, near_name
from ..masks.repair import check_repair
from ..planning.plan import Plan, make_plan, memory_parameters
from ..recipe.learning import Lora
from ..recipe.schema import Recipe

Tree = dict[str, Any]
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@dataclass(frozen=True)
class Setting:
    """What the changes may depend on.

    Args:
        recipe: the recipe that is changed.
        spec: its base.
    """

    recipe: Recipe
    spec: ModelSpec

    @cached_property
    def plan(self) -> Plan:
        """The plan of the unchanged recipe."""
        return make_plan(self.recipe, self.spec)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row.

    Args:
        meaning: a few words. change: changes the recipe, a tree of plain values, in place. unpruned: memories
        are learned for the unpruned base: there is no mask, and stages begin with `recover`.
    """

    meaning: str
    change: Callable[[Tree, Setting], None]
    unpruned: bool = False

    def of(self, tree: Mapping[str, Any], setting: Setting) -> Tree:
        """The changed recipe.

        Raises:
            UsageError: the row makes no sense for this recipe.
        """
        changed = deepcopy(dict(tree))
        self.change(changed, setting)
        return changed


def fields(**values: Any) -> Callable[[Tree, Setting], None]:
    """A change that sets fields; `mask__layout` stands for `mask.layout`."""

    def change(tree: Tree, setting: Setting) -> None:
        for name, value in values.items():
            *parents, last = name.split("__")
            place = tree
            for part in parents:
                place = place.setdefault(part, {})
            place[last] = value

    return change


def _nothing(tree: Tree, setting: Setting) -> None:
    pass


def _stage(tree: Tree, name: str) -> Tree | None:
    """The options of a stage, to be changed in place."""
    for entry in tree["stages"]:
        if name in entry:
            entry[name] = dict(entry[name] or {})
            options: Tree = entry[name]
            return options
    return None


def _without(tree: Tree, *names: str) -> None:
    tree["stages"] = [entry for entry in tree["stages"] if not set(entry) & set(names)]


def _no_memory(tree: Tree, setting: Setting) -> None:
    tree["memory"] |= {"lora": None, "kv": None, "neurons": None}
    if isinstance(tree["memory"].get("layers"), dict) and "learned_bytes" in tree["memory"]["layers"]:
        tree["memory"]["layers"] = "all"
    _without(tree, "recover", "restore", "route")


def _only(half: str) -> Callable[[Tree, Setting], None]:
    def change(tree: Tree, setting: Setting) -> None:
        if getattr(setting.recipe.memory, half) is None:
            raise UsageError(f"row {half}_only: the recipe has no memory.{half}; leave the row out.")
        others = {name: None for name in ("lora", "kv", "neurons") if name != half}
        tree["memory"] |= others
        _without(tree, "restore")

    return change


def _one_shot(selector: str, *, recovery: bool) -> Callable[[Tree, Setting], None]:
    def change(tree: Tree, setting: Setting) -> None:
        if not recovery:
            _no_memory(tree, setting)
        _without(tree, "learn_masks", "select_masks")
        tree["stages"].insert(0, {"select_masks": {"selector": selector}})
        tree["mask"]["gates"] = "hard_concrete"
        if selector == "depth":
            tree["mask"]["layout"] = "ragged"
        if selector == "flap":
            tree["mask"]["repair"] = _bias_where_possible(setting)

    return change


def _bias_where_possible(setting: Setting) -> str:
    """FLAP has a bias; some families have no place for it."""
    try:
        check_repair(setting.spec, setting.recipe.mask.structure_names, "bias")
    except UsageError:
        return setting.recipe.mask.repair
    return "bias"


def _prune_then_recover(tree: Tree, setting: Setting) -> None:
    options = _stage(tree, "learn_masks")
    if options is None:
        raise UsageError("row prune_then_recover: the recipe has no stage learn_masks; leave the row out.")
    options["joint"] = False


def _random_memory(tree: Tree, setting: Setting) -> None:
    """Masks without memories, then memories of random numbers that are not trained."""
    if setting.recipe.memory.kv is None:
        raise UsageError(
            "row random_memory: the recipe has no memory.kv, and an untrained LoRA does nothing; leave the "
            "row out."
        )
    tree["memory"] |= {"kv": {**tree["memory"]["kv"], "init": "random"}, "neurons": None}
    options = _stage(tree, "learn_masks")
    if options is not None:
        options["joint"] = False
    _without(tree, "recover", "restore")


def _prune_less(tree: Tree, setting: Setting) -> None:
    """No memory, and so much less pruned that as many parameters are loaded as backbone and one memory
    have."""
    plan = setting.plan
    removed = plan.budget.removed_params - plan.memory_params
    if removed <= 0:
        raise UsageError(
            f"row prune_less: one memory ({plan.memory_params:,} parameters) is as large as what is pruned "
            f"({plan.budget.removed_params:,}); leave the row out, or make the memory smaller."
        )
    _no_memory(tree, setting)
    tree["mask"]["global_sparsity"] = removed / plan.budget.base_params


def _restored_neurons(tree: Tree, setting: Setting) -> None:
    """Instead of the recipe's memory as many bytes of removed neurons, as they were and untrained."""
    neurons = {"bytes": setting.plan.memory_bytes, "layout": setting.recipe.mask.layout}
    tree["memory"] |= {"lora": None, "kv": None, "neurons": neurons}
    options = _stage(tree, "learn_masks")
    if options is not None:
        options["joint"] = False
    known = _stage(tree, "restore") or {}
    _without(tree, "restore", "recover")
    tree["stages"].insert(1, {"restore": known})


def _unpruned_lora(tree: Tree, setting: Setting) -> None:
    """One LoRA for each domain on the unpruned base, of the bytes of one memory, trained on the text as teams
    do today."""
    recipe, plan = setting.recipe, setting.plan
    targets = list(TARGETS if recipe.memory.lora is None else recipe.memory.lora.targets)
    one = replace_memory(recipe, Lora(rank=1, alpha=1, targets=targets))
    layers = plan.num_memory_layers or setting.spec.num_layers
    rank = max(1, plan.memory_bytes // (memory_parameters(one, setting.spec, layers, {}) * 4))
    lora = {"rank": rank, "alpha": rank, "targets": targets}
    tree["memory"] |= {"lora": lora, "kv": None, "neurons": None}
    if layers != setting.spec.num_layers and not isinstance(recipe.memory.layers, list):
        tree["memory"]["layers"] = {"upper": layers}
    tree.setdefault("distill", {})["loss"] = "cross_entropy"
    tree["mask"] |= {"repair": "none", "gates": "hard_concrete"}
    tree["stages"] = _memory_stages(tree)


def _memory_stages(tree: Tree) -> list[Tree]:
    """`recover` with the steps of all stages that train, and `evaluate`."""
    joint, recover = (_stage(tree, name) or {} for name in ("learn_masks", "recover"))
    steps = joint.get("max_steps", 0) + recover.get("max_steps", 0)
    known = {key: value for key, value in (recover or joint).items() if key != "joint"}
    return [{"recover": {**known, "max_steps": steps}}, {"evaluate": _stage(tree, "evaluate") or {}}]


def replace_memory(recipe: Recipe, lora: Lora) -> Recipe:
    """A recipe whose memories are a LoRA alone."""
    memory = recipe.memory.model_copy(update={"lora": lora, "kv": None, "neurons": None})
    return recipe.model_copy(update={"memory": memory})


def _upper_layers(tree: Tree, setting: Setting) -> None:
    tree["memory"]["layers"] = {"upper": math.ceil(0.6 * setting.spec.num_layers)}


def _learned_layers(tree: Tree, setting: Setting) -> None:
    tree["memory"]["layers"] = {"learned_bytes": max(1, setting.plan.memory_bytes // 2)}


def _one_shot_rows() -> dict[str, Row]:
    rows = {}
    for name in plugins.names(plugins.SELECTORS):
        rows[f"one_shot_{name}"] = Row(
            meaning=f"mask of selector {name}, then recovery", change=_one_shot(name, recovery=True)
        )
        rows[f"one_shot_{name}_bare"] = Row(
            meaning=f"mask of selector {name}, no memory", change=_one_shot(name, recovery=False)
        )
    return rows


ROWS: dict[str, Row] = {
    "koff": Row(meaning="the recipe as it is", change=_nothing),
    "pruning_only": Row(meaning="no memory", change=_no_memory),
    "lora_only": Row(meaning="memories of LoRA alone", change=_only("lora")),
    "kv_only": Row(meaning="memories of KV alone", change=_only("kv")),
    "neurons_only": Row(meaning="memories of neurons alone", change=_only("neurons")),
    "prune_then_recover": Row(meaning="masks first, then memories", change=_prune_then_recover),
    "prune_less": Row(
        meaning="no memory, less pruned: loaded parameters of backbone + one memory", change=_prune_less
    ),
    "restored_neurons": Row(
        meaning="removed neurons of the memory's bytes, untrained", change=_restored_neurons
    ),
    "unpruned_lora": Row(
        meaning="a LoRA for each domain on the unpruned base, of one memory's bytes",
        change=_unpruned_lora,
        unpruned=True,
    ),
    "random_memory": Row(meaning="a KV memory of random numbers, untrained", change=_random_memory),
    "upper_layers": Row(meaning="memory in the upper 60 % of the layers", change=_upper_layers),
    "learned_layers": Row(meaning="half the memory's bytes, layers learned", change=_learned_layers),
    "no_retention": Row(meaning="no retention text", change=fields(retention=None)),
    "cross_entropy": Row(meaning="loss: the text itself (SFT)", change=fields(distill__loss="cross_entropy")),
    "blended": Row(meaning="loss: KL and text blended", change=fields(distill__loss="blended")),
    "full_kl": Row(meaning="loss: full KL", change=fields(distill__loss="full")),
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
}
"""Every row by name."""

DEFAULT = ("koff", "pruning_only", "prune_then_recover", "prune_less", "one_shot_activation")


def find_row(name: str) -> Row:
    """A row by its name.

    Raises:
        UsageError: there is none of this name.
    """
    if name not in ROWS:
        raise UsageError(f"--rows: no row {name!r}; {near_name(name, ROWS)}")
    return ROWS[name]
