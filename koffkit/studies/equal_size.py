"""Rows with other memories of the same size, so that only their kind makes the difference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..errors import UsageError
from ..planning.plan import make_plan
from ..recipe.learning import Memory
from .changes import Change, RowRefused, Setting, Tree, without_neurons

SIZES = {"lora": ("rank",), "kv": ("tokens",), "neurons": ("count", "bytes")}
"""What the size of each part of a memory is proportional to."""
COMBINATIONS = {
    "equal_lora": ("lora",),
    "equal_kv": ("kv",),
    "equal_lora_kv": ("lora", "kv"),
    "equal_neurons": ("neurons",),
    "equal_neurons_lora": ("neurons", "lora"),
    "equal_neurons_kv": ("neurons", "kv"),
}
"""Parts by row."""


def of_equal_size(row: str) -> Change:
    """Memories of some parts only, each so much larger that a memory has as many parameters as the recipe's;
    a part keeps its share beside the others.

    Args:
        row: one of `COMBINATIONS`.
    """
    parts = COMBINATIONS[row]

    def change(tree: Tree, setting: Setting) -> None:
        memory = setting.recipe.memory
        missing = next((part for part in parts if getattr(memory, part) is None), None)
        if missing is not None:
            raise RowRefused(row, f"the recipe has no memory.{missing}")
        wanted = setting.plan.memory_params
        factor = _largest(lambda factor: _parameters(setting, parts, factor) <= wanted)
        tree["memory"] |= {part: None for part in SIZES if part not in parts}
        tree["memory"] |= _scaled(memory, parts, factor)
        if "neurons" not in parts:
            without_neurons(tree)

    return change


def _largest(fits: Callable[[float], bool]) -> float:
    """The largest factor that fits, to one part in 2^20."""
    low, high = 0.0, 1.0
    while fits(high):
        low, high = high, 2 * high
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _scaled(memory: Memory, parts: tuple[str, ...], factor: float) -> dict[str, dict[str, Any]]:
    """The settings of parts, at a multiple of their size and at least 1; LoRA keeps alpha / rank."""
    scaled = {}
    for part in parts:
        known: dict[str, Any] = getattr(memory, part).model_dump(mode="json")
        sizes = {name: max(1, int(known[name] * factor)) for name in SIZES[part] if known[name] is not None}
        if part == "lora":
            sizes["alpha"] = known["alpha"] * sizes["rank"] / known["rank"]
        scaled[part] = known | sizes
    return scaled


def _parameters(setting: Setting, parts: tuple[str, ...], factor: float) -> int:
    whole = setting.recipe.memory
    tree = whole.model_dump(mode="json") | dict.fromkeys(SIZES)
    memory = Memory.model_validate(tree | _scaled(whole, parts, factor))
    try:
        recipe = setting.recipe.model_copy(update={"memory": memory})
        return make_plan(recipe, setting.spec).memory_params
    except UsageError:  # more neurons than the mask removes
        return setting.plan.memory_params + 1
