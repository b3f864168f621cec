"""Selector `activation`: units whose activations hardly reach the next weights go first."""

from __future__ import annotations

import torch
from torch import Tensor

from .base import Calibration, ChannelSelector, GatePlace, Saliencies, gate_places, show_text


class Activation(ChannelSelector):
    """The root mean square of a channel's activation times the norm of the weights that read it (Wanda, Sun
    et al. 2024, arXiv 2306.11695, equation 1, summed over the outputs of a weight matrix); of a unit, the
    Euclidean norm over its channels. A gate on a module's output is rated by the activation alone. The paper
    compares within a matrix; across layers see `ChannelSelector`."""

    any_sparsity = True

    def channels(self, text: Calibration) -> Saliencies:
        places = gate_places(text.student, text.sizes)
        widths = {place.gate: len(place.units) for place in places}
        sums = {name: total.new_zeros(len(total), widths[name]) for name, total in text.zeros().items()}

        def receive(place: GatePlace, values: Tensor) -> None:
            sums[place.gate][place.layer] += _mean_squares(place, values)

        show_text(text, receive)
        return {name: total.sqrt() for name, total in sums.items()}

    def saliency(self, text: Calibration) -> Saliencies:
        return {name: total.sqrt() for name, total in unit_squares(text).items()}


def unit_squares(text: Calibration) -> Saliencies:
    """The squared activation norm of every unit [L, U] by gate, summed over batches."""
    sums = text.zeros()

    def receive(place: GatePlace, values: Tensor) -> None:
        sums[place.gate][place.layer].index_add_(0, place.units, _mean_squares(place, values))

    show_text(text, receive)
    return sums


def _mean_squares(place: GatePlace, values: Tensor) -> Tensor:
    """The mean square of each channel, times the squared norm of what reads it."""
    return values.float().square().mean(0) * reading_weights(place)


def reading_weights(place: GatePlace) -> Tensor:
    """The squared norm of the weights that read each channel, [C]; 1 for a gate on a module's output."""
    if place.point.side == "out":
        return torch.ones(len(place.units), device=place.units.device)
    return place.weight.float().square().sum(0)


SELECTOR = Activation()
