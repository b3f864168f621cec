"""Selector `magnitude`: small weights go first; the text is not looked at."""

from __future__ import annotations

import torch

from ..method.budget import Budget
from ..model.linear import plain_weight
from .base import Calibration, Saliencies, Selector, per_parameter


class Magnitude(Selector):
    """The Euclidean norm of all weights that go with a unit (Han et al. 2015, arXiv 1506.02626, for single
    weights). Across layers and structures, the mean square of a weight: weights are compared as they are."""

    any_sparsity = True

    def saliency(self, text: Calibration) -> Saliencies:
        return {name: squares.sqrt() for name, squares in _squares(text).items()}

    def scores(self, text: Calibration, budget: Budget) -> Saliencies:
        return per_parameter(_squares(text), budget)


@torch.no_grad()
def _squares(text: Calibration) -> Saliencies:
    sums, spec = text.zeros(), text.student.spec
    for gate, table in sums.items():
        structure = spec.arch.structures[gate.partition("@")[0]]
        for cut in structure.cuts or structure.masked_cuts:
            units = torch.from_numpy(cut.unit_of_channel(spec.shape)).to(table.device)
            for layer, row in enumerate(table):
                module = text.student.model.get_submodule(spec.arch.layer(layer) + cut.module)
                squares = plain_weight(module).float().square()
                row.index_add_(0, units, squares.sum(1 if cut.side == "out" else 0))
    return sums


SELECTOR = Magnitude()
