"""What a recipe says about the result that export formats must carry, before anything is learned."""

from __future__ import annotations

from typing import Literal

from ..arch.spec import divides_heads
from ..artefact.routes import Facts
from ..recipe.schema import Recipe


def facts_of_recipe(recipe: Recipe) -> Facts:
    """What backbone and memories will be like, as far as the recipe alone says."""
    memory, names = recipe.memory, recipe.mask.structure_names
    divided = any(divides_heads(name) for name in names)
    ragged = recipe.mask.layout == "ragged"
    # Layers that learning chooses may be all of them, but nobody knows before.
    kv: Literal["all", "some", "none"]
    kv = "none" if memory.kv is None else "all" if memory.layers == "all" else "some"
    return Facts(
        family=None,
        own_class=ragged or divided,
        neurons_differ=ragged and "mlp_neuron" in names,
        heads_differ=ragged and "kv_group" in names,
        heads_divided=divided,
        heads_fewer="kv_group" in names,
        sliding=False,
        ranks=frozenset([] if memory.lora is None else [memory.lora.rank]),
        kv=kv,
        neurons=memory.neurons is not None,
    )
