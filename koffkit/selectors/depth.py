"""Selector `depth`: whole blocks go, those first that change the hidden states least."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import UsageError
from ..method.budget import Budget
from ..recipe.learning import Mask
from .activation import unit_squares
from .base import Calibration, Saliencies, Selector

BLOCK = "kv_group"
"""The structure without which attention stays, and a block cannot go as a whole."""


class Depth(Selector):
    """Block influence: 1 - the mean cosine of a block's input and output (ShortGPT, Men et al. 2024, arXiv
    2403.03853, equation 1). Blocks lose all their units in the order of their influence, until the budget is
    met exactly: where it falls within a block, that block loses the units of lowest activation norm.

    Two things differ from the paper. One step of each structure stays in every block, because no model class
    holds a layer without neurons or heads. And what goes are the recipe's structures: with `mlp_neuron`
    alone, blocks lose their MLP and keep their attention."""

    any_sparsity = True

    def check(self, mask: Mask) -> None:
        if mask.layout == "uniform":
            raise UsageError(
                "stages.select_masks.selector: depth removes whole blocks, which mask.layout: uniform does "
                "not allow; set mask.layout to ragged."
            )

    def saliency(self, text: Calibration) -> Saliencies:
        """Rank of the block plus the rank of the unit within it, as a fraction."""
        influence = block_influence(text)
        order = influence.argsort(dim=0, stable=True).argsort().float()
        return {name: _ranked(table, order) for name, table in unit_squares(text).items()}

    def scores(self, text: Calibration, budget: Budget) -> Saliencies:
        """As they are: blocks compare across layers and structures."""
        if BLOCK not in budget.removable:
            text.warn(
                f"selector depth: {BLOCK} is not among mask.structures, so that blocks lose their MLP and "
                "keep their attention"
            )
        return self.saliency(text)


def _ranked(table: Tensor, order: Tensor) -> Tensor:
    """Scores [L, U]: the rank of each block [L], then of the units in it."""
    inside = table.argsort(dim=-1, stable=True).argsort(-1) / table.shape[-1]
    return order.to(inside)[:, None] + inside


@torch.no_grad()
def block_influence(text: Calibration) -> Tensor:
    """1 - the mean cosine of the input and the output of each block, [L]."""
    spec = text.student.spec
    sums, tokens = torch.zeros(spec.num_layers, dtype=torch.float64), 0
    handles = []
    for layer in range(spec.num_layers):

        def hook(module: nn.Module, args: tuple[Any, ...], output: Any, layer: int = layer) -> None:
            after = output[0] if isinstance(output, tuple) else output
            sums[layer] += F.cosine_similarity(args[0].float(), after.float(), dim=-1).sum().item()

        block = text.student.model.get_submodule(spec.arch.layer(layer).rstrip("."))
        handles.append(block.register_forward_hook(hook))
    try:
        for batch in text.batches():
            with text.autocast():
                text.student(batch.ids, positions=batch.positions)
            tokens += batch.ids.numel()
    finally:
        for handle in handles:
            handle.remove()
    return 1 - sums / max(1, tokens)


SELECTOR = Depth()
