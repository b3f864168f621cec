"""The repair of a pruned model whose memories give neurons back: backbone and memories are fitted together.

Legend: D hidden, U neurons of a layer, n restored neurons of a layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..masks.convert import as_masks
from ..method.refit import Refit, reconstruction_error, refit
from ..method.restoring import mixed
from ..model.linear import base_linear
from ..model.neuron_memory import mlp_modules
from ..planning.neurons import STRUCTURE
from .context import Context
from .moments import RETENTION, LayerMoments, layer_moments
from .repair import Repaired, kept_inputs, repair_modules

Places = Mapping[str, Mapping[int, Tensor]]
"""Restored neurons: their places [n] by layer, by domain."""


@dataclass
class NeuronRepair:
    """New columns of down.

    Attributes:
        backbone: weights [D, U] by layer; layers that least squares do not help are left out.
        memories: columns [D, n] by domain and layer, of the same layers.
        before, after: squared error of the outputs on text that nothing was fitted to, summed over layers and
            domains.
    """

    backbone: dict[int, Tensor] = field(default_factory=dict)
    memories: dict[str, dict[int, Tensor]] = field(default_factory=dict)
    before: float = 0.0
    after: float = 0.0


def repair(context: Context, places: Places, own_share: float) -> dict[str, dict[int, Tensor]]:
    """Make the repair of a run whose memories give neurons back, if the recipe asks for one, and use it.

    Returns:
        The restored neurons' columns of down, [D, n] by domain and layer; what is left out stays as it was.
    """
    if not context.loaded.recipe.repairs_with_neurons or context.teacher is not None:
        return {}  # a backbone that is sliced already stays as it is
    fitted = repair_with_neurons(context, places, own_share)
    kept = kept_inputs(context, as_masks(context.masks or {}))
    arch, done = context.student.spec.arch, {}
    each = (fitted.before / context.student.spec.num_layers, fitted.after / context.student.spec.num_layers)
    for layer in range(context.student.spec.num_layers):
        name = f"{arch.layer(layer)}mlp.down_proj"
        if kept.pop(name, None) is not None:
            tensors = {"weight": fitted.backbone[layer]} if layer in fitted.backbone else {}
            done[name] = Repaired(tensors, *each)
    context.use_repair(repair_modules(context, kept, done))
    return fitted.memories


def repair_with_neurons(context: Context, places: Places, own_share: float) -> NeuronRepair:
    """Fit the columns of every layer's down, on the training text of all domains.

    Args:
        context: its masks are final.
        places: what the memories give back.
        own_share: weight of a domain's own text in the fit of its memory; the mean of all has the rest.

    Raises:
        Interrupted: the user asked to stop.
    """
    assert context.masks is not None
    keep = context.masks[STRUCTURE].bool()
    downs = {layer: base_linear(mlp.down_proj).weight for layer, mlp in mlp_modules(context.student.model)}
    repair = NeuronRepair(memories={domain: {} for domain in places})
    for moments in layer_moments(context):
        layer = moments.layer
        weight = downs[layer].detach().double()
        restored = _of_layer(places, moments, weight.device)
        _add_layer(context, repair, moments, weight, keep[layer].to(weight.device), restored, own_share)
    return repair


def _of_layer(places: Places, moments: LayerMoments, device: torch.device) -> dict[str, Tensor]:
    none = torch.empty(0, dtype=torch.long, device=device)
    return {name: places.get(name, {}).get(moments.layer, none).to(device) for name in moments.fit}


def _add_layer(
    context: Context,
    repair: NeuronRepair,
    moments: LayerMoments,
    weight: Tensor,
    keep: Tensor,
    restored: dict[str, Tensor],
    own_share: float,
) -> None:
    """Take a layer's fit if it helps on the text that checks it."""
    own = {name: value for name, value in moments.fit.items() if name != RETENTION}
    fitted = refit(
        weight,
        keep,
        {**moments.fit, **mixed(own, own_share)},
        restored,
        context.loaded.recipe.mask.repair_damping,
    )
    exact = Refit(weight[:, keep], {name: weight[:, own] for name, own in restored.items()})
    before, after = (
        sum(
            reconstruction_error(
                weight, check, keep, columns.backbone, restored[name], columns.memories[name]
            )
            for name, check in moments.check.items()
        )
        for columns in (exact, fitted)
    )
    repair.before += before
    repair.after += min(before, after)
    if after < before:
        whole = weight.clone()
        whole[:, keep] = fitted.backbone
        repair.backbone[moments.layer] = whole
        for domain in repair.memories:
            repair.memories[domain][moments.layer] = fitted.memories[domain]
