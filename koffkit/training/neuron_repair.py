"""The repair of a pruned model whose memories give neurons back: backbone and memories are fitted together.

Legend: D hidden, U neurons of a layer, n restored neurons of a layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..masks.convert import as_masks
from ..method.refit import Refit, refit, whole_weight
from ..method.repair import Means, mixed_means, output_error
from ..model.linear import plain_linear, plain_weight
from ..model.neuron_memory import Neurons
from .context import Context
from .layerwise import RETENTION, Walk
from .neuron_fit import fit_columns
from .repair import Repaired, repair_modules

Places = Mapping[str, Mapping[int, Tensor]]
"""Restored neurons: their places [n] by layer, by domain."""


def repair(
    context: Context, neurons: Mapping[str, Mapping[int, Neurons]], own_share: float
) -> dict[str, dict[int, Tensor]]:
    """Make the repair of a run whose memories give neurons back, if the recipe asks for one, and use it. A
    backbone that is sliced already stays as it is, and the memory is fitted to it.

    Args:
        context: its masks are final.
        neurons: what the memories give back, as the base has it, by domain and layer.
        own_share: weight of a domain's own text in the fit of its memory; the mean of all has the rest.

    Returns:
        The restored neurons' columns of down, [D, n] by domain and layer; what is left out stays as it was.
    """
    if not context.loaded.recipe.repairs_with_neurons:
        return {}
    if context.teacher is not None:
        return fit_columns(context, neurons)
    assert context.masks is not None
    together = Together(own_share, {domain: dict(own) for domain, own in neurons.items()})
    context.use_repair(repair_modules(context, as_masks(context.masks), together))
    return together.columns


@dataclass
class Together:
    """The fit of down's columns in the backbone and in all memories.

    Args:
        own_share: see `repair`.
        neurons: of the memories, by domain and layer; their columns change as layers are fitted.

    Attributes:
        columns: what was fitted, [D, n] by domain and layer.
    """

    own_share: float
    neurons: dict[str, dict[int, Neurons]]
    columns: dict[str, dict[int, Tensor]] = field(default_factory=dict)

    def fit(self, context: Context, walk: Walk, layer: int, name: str, keep: Tensor) -> Repaired:
        """Fit a layer, and use what was found if it helps on the text that checks it.

        Args:
            context: see `repair`.
            walk: before the layer in the pruned model.
            layer: its index.
            name: of its down projection.
            keep: neurons that the backbone keeps, boolean [U].
        """
        linear = plain_linear(context.student.model.get_submodule(name))
        weight, moments = plain_weight(linear).detach().double(), walk.moments(layer, name)
        fit = {stream: own.fit.means().without(linear.bias) for stream, own in moments.items()}
        domains = {stream: own for stream, own in fit.items() if stream != RETENTION}
        restored = self._restored(layer, list(fit), weight.device)
        tried = [Refit(weight[:, keep], {stream: weight[:, own] for stream, own in restored.items()})]
        text = fit | mixed_means(domains, self.own_share)
        tried += [
            refit(weight, keep, text, restored, damping) for damping in context.loaded.recipe.mask.dampings
        ]
        check = {
            stream: own.check.means().without(linear.bias)
            for stream, own in moments.items()
            if own.check.tokens
        }
        errors = [_error(columns, check, weight.shape, keep, restored) for columns in tried]
        best = errors.index(min(errors))
        if not best:
            return Repaired({}, errors[0], errors[0])
        self._use(layer, tried[best])
        whole = weight.clone()
        whole[:, keep] = tried[best].backbone
        return Repaired({"weight": whole}, errors[0], errors[best])

    def _restored(self, layer: int, streams: list[str], device: torch.device) -> dict[str, Tensor]:
        none = torch.empty(0, dtype=torch.long, device=device)
        own = {domain: neurons[layer].index for domain, neurons in self.neurons.items() if layer in neurons}
        return {stream: own.get(stream, none).to(device) for stream in streams}

    def _use(self, layer: int, fitted: Refit) -> None:
        for domain, neurons in self.neurons.items():
            if layer in neurons:
                known, columns = neurons[layer], fitted.memories[domain]
                neurons[layer] = replace(known, down=columns.to(known.down.device, known.down.dtype))
                self.columns.setdefault(domain, {})[layer] = columns


def _error(
    columns: Refit,
    check: Mapping[str, Means],
    shape: torch.Size,
    keep: Tensor,
    restored: Mapping[str, Tensor],
) -> float:
    """The error of the layer's output, summed over the streams."""
    return sum(
        output_error(whole_weight(shape, keep, columns, stream, restored[stream]), means)
        for stream, means in check.items()
    )
