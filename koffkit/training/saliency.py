"""Initial gates: all equal (cold), or ranked by a selector's estimate of how much the unpruned model needs
each unit (warm; ours).

Legend: L layers, U units of a structure in one layer.
"""

from __future__ import annotations

import torch

from .. import plugins
from ..recipe.training import Training
from ..selectors import Selector
from .calibration import calibration, calibration_batches
from .context import Context


def warm_start(context: Context, options: Training) -> None:
    """Spread the gates' `log_alpha` by the saliencies of a selector, in standard deviations of their
    logarithm, around the cold start.

    Ranks are taken within a layer for layout `uniform`, over all layers for `ragged`.
    """
    mask, gates = context.loaded.recipe.mask, context.student.gates
    if mask.init == "cold" or gates is None:
        return
    selector: Selector = plugins.load(plugins.SELECTORS, mask.init, "mask.init")
    batches = calibration_batches(context, mask.init_batches, options.batch_size, context.corpus.domains)
    saliencies = selector.saliency(calibration(context, "warm start", batches))
    with torch.no_grad():
        for name, saliency in saliencies.items():
            score = saliency.clamp_min(1e-12).log()
            over = (-1,) if mask.layout == "uniform" else (0, 1)
            # a single unit has no deviation: it keeps its value
            units = score.shape[-1] if over == (-1,) else score.numel()
            std = score.std(over, keepdim=True, correction=min(1, units - 1)).clamp_min(1e-6)
            gates.log_alpha[name].add_(mask.init_std * (score - score.mean(over, keepdim=True)) / std)
