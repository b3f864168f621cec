"""What a plan warns of."""

from __future__ import annotations

from ..checkpoint.spec import ModelSpec
from ..method.budget import Budget
from ..recipe.learning import Learned
from ..recipe.schema import Recipe
from ..recipe.servable import VLLM_RANKS
from ..recipe.training import Training

COLLAPSE = 0.2
EVEN = 16
"""Widths that it divides are fast, as measured on CPUs; GPUs want 64."""


def warnings_of(recipe: Recipe, budget: Budget, spec: ModelSpec) -> list[str]:
    """What a user should know before the run begins, one sentence or two each.

    Args:
        recipe: the recipe.
        budget: what it removes.
        spec: the base.
    """
    warnings = []
    positions = spec.config.get("max_position_embeddings")
    if isinstance(positions, int) and recipe.sequence_length > positions:
        warnings.append(
            f"sequence_length: {recipe.sequence_length} tokens, but the base was made for "
            f"max_position_embeddings = {positions}; what it says beyond is no good teacher."
        )
    lora, top = recipe.memory.lora, recipe.distill.top_k
    if lora is not None and lora.rank not in VLLM_RANKS:
        warnings.append(
            f"memory.lora.rank: {lora.rank} is not one of vLLM's {VLLM_RANKS}; "
            + ("format vllm pads it." if lora.rank < VLLM_RANKS[-1] else "vLLM will not serve the adapters.")
        )
    multiple, kept = recipe.mask.multiple_of, budget.keep.get("mlp_neuron", 0)
    if "mlp_neuron" in budget.keep and (multiple if recipe.mask.layout == "ragged" else kept) % EVEN:
        width = "layers of any width" if recipe.mask.layout == "ragged" else f"{kept:,.0f} neurons a layer"
        warnings.append(
            f"mask.multiple_of: {multiple} leaves {width}; widths that are no multiple of {EVEN} cost what "
            "pruning gains in speed. Use 64."
        )
    if budget.global_sparsity > COLLAPSE and not recipe.base.model.startswith("embedded:"):
        warnings.append(
            f"mask.global_sparsity: at {budget.global_sparsity:.0%} the paper's models collapse; 12 % is its "
            "setting."
        )
    later = [stage for stage in recipe.stages[1:] if isinstance(stage.options, Training)]
    if isinstance(recipe.memory.layers, Learned) and not later:
        warnings.append(
            "memory.layers.learned_bytes: without stage recover the memories that stay cannot make up for "
            "those that go."
        )
    if recipe.distill.cache and recipe.distill.loss == "cross_entropy":
        warnings.append("distill.cache: loss cross_entropy has no teacher, so nothing is kept.")
    if isinstance(top, int) and top < 10:
        warnings.append(
            f"distill.top_k: {top} tokens leave most of a soft distribution unconstrained; the paper uses "
            "100."
        )
    return warnings
