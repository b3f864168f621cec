"""Changes of a recipe that the rows of an ablation are made of."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ..checkpoint.spec import ModelSpec
from ..errors import UsageError
from ..masks.repair import check_repair
from ..planning.plan import Plan, make_plan, memory_parameters
from ..recipe.learning import Lora
from ..recipe.schema import Recipe
from ..stages.select_masks import WHAT_IS_READ

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


Change = Callable[[Tree, Setting], None]
"""Changes a recipe, a tree of plain values, in place."""


class RowRefused(UsageError):
    """A row that makes no sense for a recipe.

    Args:
        row: its name.
        why: what the recipe lacks.
        remedy: what may be done instead of leaving the row out.
    """

    def __init__(self, row: str, why: str, remedy: str = "") -> None:
        super().__init__(f"row {row}: {why}; leave the row out{remedy}.")
        self.why = why


def require_memory(row: str, setting: Setting) -> None:
    """Refuse a row that is as large as a memory where there is none.

    Raises:
        RowRefused: the recipe has no memory.
    """
    if not setting.recipe.memory.is_on:
        raise RowRefused(row, "the recipe has no memory")


def fields(**values: Any) -> Change:
    """A change that sets fields; `mask__layout` stands for `mask.layout`."""

    def change(tree: Tree, setting: Setting) -> None:
        for name, value in values.items():
            *parents, last = name.split("__")
            place = tree
            for part in parents:
                place = place.setdefault(part, {})
            place[last] = value

    return change


def another_loss(name: str) -> Change:
    """A change of the loss. One that needs all of the teacher goes without its cache, on the same split of
    the text."""

    def change(tree: Tree, setting: Setting) -> None:
        distill = tree.setdefault("distill", {})
        distill["loss"] = name
        given = setting.recipe.distill
        if given.cache and not given.model_copy(update={"loss": name}).cacheable:
            distill |= {"cache": False, "cache_dir": None}
            tree["holdout_seed"] = setting.recipe.split_seed

    return change


def nothing(tree: Tree, setting: Setting) -> None:
    pass


def stage_of(tree: Tree, name: str) -> Tree | None:
    """The options of a stage, to be changed in place."""
    for entry in tree["stages"]:
        if name in entry:
            entry[name] = dict(entry[name] or {})
            options: Tree = entry[name]
            return options
    return None


def without(tree: Tree, *names: str) -> None:
    tree["stages"] = [entry for entry in tree["stages"] if not set(entry) & set(names)]


def without_neurons(tree: Tree) -> None:
    """No memory gives neurons back, and no mask counts on it."""
    tree["memory"]["neurons"] = None
    without(tree, "restore")
    options = stage_of(tree, "select_masks")
    if options is not None:
        options.pop("for_memories", None)


def no_memory(tree: Tree, setting: Setting) -> None:
    tree["memory"] |= {"lora": None, "kv": None}
    without_neurons(tree)
    if isinstance(tree["memory"].get("layers"), dict) and "learned_bytes" in tree["memory"]["layers"]:
        tree["memory"]["layers"] = "all"
    without(tree, "route")
    _without_memories_to_train(tree)


def _without_memories_to_train(tree: Tree) -> None:
    """Take out `recover`, unless it trains the backbone, too."""
    if not ((stage_of(tree, "recover") or {}).get("lr") or {}).get("backbone"):
        without(tree, "recover")


def only(half: str) -> Change:
    def change(tree: Tree, setting: Setting) -> None:
        if getattr(setting.recipe.memory, half) is None:
            raise RowRefused(f"{half}_only", f"the recipe has no memory.{half}")
        tree["memory"] |= {name: None for name in ("lora", "kv") if name != half}
        if half != "neurons":
            without_neurons(tree)

    return change


def one_shot(selector: str, *, recovery: bool) -> Change:
    """The mask of a selector, which looks at the text that the recipe's own selector looks at."""

    def change(tree: Tree, setting: Setting) -> None:
        given = stage_of(tree, "select_masks") or {}
        text = {key: value for key, value in given.items() if key in WHAT_IS_READ}
        if not recovery:
            no_memory(tree, setting)
            without(tree, "recover")
        without(tree, "learn_masks", "select_masks")
        tree["stages"].insert(0, {"select_masks": text | {"selector": selector}})
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


def prune_then_recover(tree: Tree, setting: Setting) -> None:
    options = stage_of(tree, "learn_masks")
    if options is None:
        raise RowRefused("prune_then_recover", "the recipe has no stage learn_masks")
    if setting.recipe.memory.lora is None and setting.recipe.memory.kv is None:
        raise RowRefused("prune_then_recover", "the recipe learns no memory together with the masks")
    options["joint"] = False


def random_memory(tree: Tree, setting: Setting) -> None:
    """Masks without memories, then memories of random numbers that are not trained."""
    if setting.recipe.memory.kv is None:
        why = "the recipe has no memory.kv, and an untrained LoRA does nothing"
        raise RowRefused("random_memory", why)
    tree["memory"]["kv"] = {**tree["memory"]["kv"], "init": "random"}
    without_neurons(tree)
    options = stage_of(tree, "learn_masks")
    if options is not None:
        options["joint"] = False
    without(tree, "recover")


def prune_less(tree: Tree, setting: Setting) -> None:
    """No memory, and so much less pruned that as many parameters are loaded as backbone and one memory
    have."""
    require_memory("prune_less", setting)
    plan = setting.plan
    removed = plan.budget.removed_params - plan.memory_params
    if removed <= 0:
        why = (
            f"one memory ({plan.memory_params:,} parameters) is as large as what is pruned "
            f"({plan.budget.removed_params:,})"
        )
        raise RowRefused("prune_less", why, ", or make the memory smaller")
    no_memory(tree, setting)
    tree["mask"]["global_sparsity"] = removed / plan.budget.base_params


def restored_neurons(tree: Tree, setting: Setting) -> None:
    """Instead of the recipe's memory as many bytes of removed neurons, as they were and untrained."""
    require_memory("restored_neurons", setting)
    memory, options = setting.recipe.memory, stage_of(tree, "learn_masks")
    if memory.lora is None and memory.kv is None:
        tree["memory"]["neurons"] = tree["memory"]["neurons"] | {"tuned": False}
    else:
        neurons = {"bytes": setting.plan.memory_bytes, "layout": setting.recipe.mask.layout}
        tree["memory"] |= {"lora": None, "kv": None, "neurons": neurons}
        if options is not None:
            options["joint"] = False
    known = stage_of(tree, "restore") or {}
    without(tree, "restore")
    _without_memories_to_train(tree)
    tree["stages"].insert(1, {"restore": known})


def unpruned_lora(tree: Tree, setting: Setting) -> None:
    """One LoRA for each domain on the unpruned base, of the bytes of one memory, trained on the text as teams
    do today."""
    require_memory("unpruned_lora", setting)
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
    joint, recover = (stage_of(tree, name) or {} for name in ("learn_masks", "recover"))
    steps = joint.get("max_steps", 0) + recover.get("max_steps", 0)
    if not steps:
        raise RowRefused("unpruned_lora", "no stage of the recipe trains, so a LoRA has no steps")
    known = {key: value for key, value in (recover or joint).items() if key != "joint"}
    known["lr"] = {**(known.get("lr") or {}), "backbone": None}  # the base stays what it is
    return [{"recover": {**known, "max_steps": steps}}, {"evaluate": stage_of(tree, "evaluate") or {}}]


def replace_memory(recipe: Recipe, lora: Lora) -> Recipe:
    """A recipe whose memories are a LoRA alone."""
    memory = recipe.memory.model_copy(update={"lora": lora, "kv": None, "neurons": None})
    return recipe.model_copy(update={"memory": memory})


def upper_layers(tree: Tree, setting: Setting) -> None:
    tree["memory"]["layers"] = {"upper": math.ceil(0.6 * setting.spec.num_layers)}


def all_layers(tree: Tree, setting: Setting) -> None:
    if setting.recipe.memory.layers == "all":
        raise RowRefused("all_layers", "the recipe has its memory in all layers already")
    tree["memory"]["layers"] = "all"


def learned_layers(tree: Tree, setting: Setting) -> None:
    tree["memory"]["layers"] = {"learned_bytes": max(1, setting.plan.memory_bytes // 2)}
