"""`servable: true`: what stock servers load, as one choice (ours)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ..arch.spec import divides_heads

if TYPE_CHECKING:
    from .schema import Recipe

VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""LoRA ranks that vLLM serves."""
MULTIPLE = 64
"""Widths that are fast everywhere."""


def with_defaults(data: Any) -> Any:
    """A recipe's tree in which the settings that `servable` decides are filled in, where the user gave
    none."""
    if (
        not isinstance(data, dict)
        or data.get("servable") is not True
        or not isinstance(data.get("mask"), dict)
    ):
        return data
    return data | {"mask": {"multiple_of": MULTIPLE} | data["mask"]}


def contradictions(recipe: Recipe) -> list[str]:
    """The settings of a recipe that keep stock servers from loading the result, each with what is needed."""
    return list(_contradictions(recipe))


def _contradictions(recipe: Recipe) -> Iterator[str]:
    mask, memory = recipe.mask, recipe.memory
    divided = [name for name in mask.structure_names if divides_heads(name)]
    if divided:
        names = ", ".join(divided)
        yield f"mask.structures has {names}, which no stock class holds (use mlp_neuron, kv_group)"
    if mask.layout != "uniform":
        yield f"mask.layout is {mask.layout} (uniform is needed)"
    if mask.multiple_of % MULTIPLE:
        yield f"mask.multiple_of is {mask.multiple_of} (a multiple of {MULTIPLE} is needed)"
    if memory.kv is not None and memory.layers != "all":
        yield "memory.layers is not all, and servers take a KV memory in all layers only"
    if memory.lora is not None and memory.lora.rank not in VLLM_RANKS:
        yield f"memory.lora.rank is {memory.lora.rank} (one of {', '.join(map(str, VLLM_RANKS))} is needed)"
    if memory.neurons is not None:
        yield "memory.neurons is on, and only koffkit adds neurons at run time (null is needed)"
