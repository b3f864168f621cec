"""Selector `sensitivity`: as `fisher`, steadied by a second estimate of the same thing (ours).

Legend: L layers, C channels that a gate multiplies, U units, N tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .base import Calibration, GatePlace, Saliencies, Selector, gate_places
from .fisher import squared_products, watch_slopes


class Sensitivity(Selector):
    """The geometric mean of two estimates of what removing a unit costs.

    E[(a d)^2], where a is what the gate multiplies and d the slope of log p(labels) by it, is right but noisy
    on little text. E[a^2] E[d^2] is what it would be if the two were independent (as in K-FAC, Martens and
    Grosse 2015, arXiv 1503.05671), and less noisy; channels of one unit count as independent there. Stage
    `restore` ranks neurons in the same way.
    """

    any_sparsity = True
    additive = True

    def saliency(self, text: Calibration) -> Saliencies:
        products = text.zeros()
        channels = {
            (place.gate, place.layer): torch.zeros(2, len(place.units), device=text.student.head.device)
            for place in gate_places(text.student, products)
        }

        def add(place: GatePlace, values: Tensor, slopes: Tensor) -> None:
            products[place.gate][place.layer].add_(squared_products(place, values, slopes))
            squares = torch.stack([values.square().sum(0), slopes.square().sum(0)])
            channels[place.gate, place.layer].add_(squares)

        tokens = max(1, watch_slopes(text, add))
        independent = text.zeros()
        for place in gate_places(text.student, products):
            activations, slopes = channels[place.gate, place.layer] / tokens
            independent[place.gate][place.layer].index_add_(0, place.units, activations * slopes)
        return {name: (sums / tokens * independent[name]).sqrt() for name, sums in products.items()}


SELECTOR = Sensitivity()
