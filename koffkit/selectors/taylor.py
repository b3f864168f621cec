"""Selector `taylor`: units whose removal changes the loss least, to first order, go first."""

from __future__ import annotations

import torch

from ..method.losses.base import Objective
from ..method.losses.chunked import training_loss
from .base import Calibration, Saliencies, Selector


class Taylor(Selector):
    """|d loss / d gate| of the next-token loss with all gates at one (Molchanov et al. 2017, arXiv
    1611.06440), summed over batches. Because a gate scales the weights that read a unit, this is the
    first-order, vector-wise importance |w . d loss / d w| of LLM-Pruner (Ma et al. 2023, arXiv 2305.11627) of
    those weights. Across layers and structures it is compared per parameter."""

    any_sparsity = True

    def saliency(self, text: Calibration) -> Saliencies:
        student, total = text.student, text.zeros()
        values = {name: torch.ones_like(table, requires_grad=True) for name, table in total.items()}
        objective = Objective.named("cross_entropy")
        for batch in text.batches():
            with text.autocast():
                hidden = student(batch.ids, values, positions=batch.positions)[:, :-1].flatten(0, 1)
                loss, _, _ = training_loss(
                    hidden, None, batch.ids[:, 1:].flatten(), student.head, objective, text.chunk_tokens
                )
            for name, gradient in zip(values, torch.autograd.grad(loss, list(values.values())), strict=True):
                total[name] += gradient.abs()
        return total


SELECTOR = Taylor()
