"""The columns of an added memory's neurons, fitted beside a backbone that stays as it is.

The backbone's own columns may have been fitted to make up for the neurons that are gone, so that the base's
columns of neurons that come back would count twice.

Legend: D hidden, K neurons that a layer keeps, n restored neurons.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from ..errors import DataError
from ..method.refit import refit_memory
from ..method.repair import output_error
from ..model.linear import plain_linear, plain_weight
from ..model.neuron_memory import Neurons, mlp_modules
from .context import Context, watched
from .layerwise import Walk, walking
from .repair import Repaired, keep_figures


def fit_columns(
    context: Context, neurons: Mapping[str, Mapping[int, Neurons]]
) -> dict[str, dict[int, Tensor]]:
    """Fit the columns, layer by layer, each for what the fitted layers before it hand on.

    Args:
        context: its student is sliced, its teacher is the base.
        neurons: what the memories give back, as the base has it, by domain and layer.

    Returns:
        Columns of down, [D, n] by domain and layer, where they help on text that is held out; what is left
        out stays as it was.

    Raises:
        Interrupted: the user asked to stop.
    """
    given = {domain: dict(own) for domain, own in neurons.items()}
    found: dict[str, dict[int, Tensor]] = {domain: {} for domain in given}
    tried: list[Repaired] = []
    try:
        with walking(context, given) as walk:
            for layer in watched("repair", range(context.student.spec.num_layers), context):
                walk.unpruned(layer)
                for domain in (name for name in given if layer in given[name]):
                    tried.append(_fit(context, walk, layer, domain))
                    if columns := tried[-1].tensors:
                        known = given[domain][layer]
                        given[domain][layer] = replace(known, down=columns["weight"].to(known.down))
                        found[domain][layer] = columns["weight"]
                walk.pruned(layer)
    except DataError:
        context.progress.warn(
            "too little text to hold out a part of it: the neurons keep the base's columns, which are not "
            "fitted to this backbone; add text."
        )
        return {}
    keep_figures(context, "least_squares", tried)
    return found


def _fit(context: Context, walk: Walk, layer: int, domain: str) -> Repaired:
    """The columns of one layer, if they help on held-out text."""
    down = plain_linear(dict(mlp_modules(context.student.model))[layer].down_proj)
    moments = walk.moments_with_neurons(layer, domain)
    fit, check = (part.means().without(down.bias) for part in (moments.fit, moments.check))
    kept = plain_weight(down).detach().double()
    weight = torch.cat([kept, walk.neurons[domain][layer].down.double()], 1)
    count = kept.shape[1]
    keep = torch.arange(weight.shape[1], device=weight.device) < count
    restored = (~keep).nonzero().flatten()
    dampings = context.loaded.recipe.mask.dampings
    tried = [weight[:, count:]] + [refit_memory(weight, keep, fit, restored, damping) for damping in dampings]
    after = [output_error(torch.cat([kept, columns], 1), check) for columns in tried]
    best = after.index(min(after))
    return Repaired({"weight": tried[best]} if best else {}, after[0], after[best])
