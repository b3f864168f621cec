"""Selector `flap`: units whose activations hardly fluctuate go first; what is constant about them can be put
into a bias (`mask.repair: bias`)."""

from __future__ import annotations

import torch
from torch import Tensor

from .activation import reading_weights
from .base import Calibration, ChannelSelector, GatePlace, Saliencies, show_text


class Fluctuation(ChannelSelector):
    """The variance of a channel's activation times the squared norm of the weights that read it (FLAP, An et
    al. 2024, arXiv 2312.11983), standardised across layers and modules. The paper's bias compensation is the
    recipe's `mask.repair: bias`."""

    any_sparsity = True

    def channels(self, text: Calibration) -> Saliencies:
        moments: dict[GatePlace, Tensor] = {}
        tokens = 0

        def receive(place: GatePlace, values: Tensor) -> None:
            nonlocal tokens
            exact = values.double()
            sums = torch.stack([exact.sum(0), exact.square().sum(0)])
            moments[place] = moments[place] + sums if place in moments else sums
            tokens += len(values)

        show_text(text, receive)
        tokens //= max(1, len(moments))  # every place sees every token
        rows: dict[str, list[Tensor]] = {}
        for place, (total, squares) in moments.items():  # in the order of the layers
            variance = squares / tokens - (total / tokens).square()
            rows.setdefault(place.gate, []).append(variance.clamp_min(0).float() * reading_weights(place))
        return {gate: torch.stack(layers) for gate, layers in rows.items()}


SELECTOR = Fluctuation()
