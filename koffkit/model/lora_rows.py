"""LoRA adapters by row of a batch, chosen in every call.

PEFT's own way (`adapter_names`) puts hooks on the shared model for the duration of a call, so that threads
get each other's adapters. Here PEFT's layers read their adapters from the state of the call; outside such a
call they do what PEFT does.

Legend: B rows, T tokens, D channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UsageError
from .per_call import of_this_call


@dataclass(frozen=True)
class AdapterRows:
    """Which rows have which adapter.

    Args:
        num_rows: of the batch, before generation repeats each of them for beams or several samples.
        rows: adapter -> indices of its rows, or None = all; rows of no adapter get the bare layer.
    """

    num_rows: int
    rows: Mapping[str, Tensor | None]

    @classmethod
    def of(cls, names: Sequence[str | None], device: torch.device) -> AdapterRows:
        """Group rows by adapter; `names` has the adapter of each row, or None."""
        rows: dict[str, Tensor | None] = {}
        for adapter in dict.fromkeys(name for name in names if name is not None):
            indices = [row for row, name in enumerate(names) if name == adapter]
            rows[adapter] = None if len(indices) == len(names) else torch.tensor(indices, device=device)
        return cls(len(names), rows)


class RowAdapters:
    """The LoRA layers of one model."""

    def __init__(self) -> None:
        self._layers: set[Any] = set()

    def take(self, model: nn.Module) -> None:
        """Make the LoRA layers that PEFT has added to `model` since the last call of this read the state of
        the call."""
        from peft.tuners.lora import LoraLayer

        for module in model.modules():
            if isinstance(module, LoraLayer) and module not in self._layers:
                module.forward = partial(_forward, module, module.forward)
                self._layers.add(module)

    def state(self, names: Sequence[str | None], device: torch.device) -> dict[nn.Module, AdapterRows]:
        """The state of a call in which row b has the adapter `names[b]`.

        Raises:
            UsageError: an adapter is merged into the weights, so no row can go without it.
        """
        if any(layer.merged for layer in self._layers):
            raise UsageError(
                "model: an adapter is merged into the backbone's weights; call "
                "`model.model.unmerge_adapter()` first."
            )
        return dict.fromkeys(self._layers, AdapterRows.of(names, device))


def _forward(layer: Any, without_state: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """[B, T, D'] of a LoRA layer from x [B, T, D]."""
    chosen: AdapterRows | None = of_this_call(layer)
    if chosen is None:
        usual: Tensor = without_state(x, *args, **kwargs)
        return usual
    result: Tensor = layer.base_layer(x, *args, **kwargs)
    for adapter, rows in chosen.rows.items():
        if adapter not in layer.lora_A:  # its memory is in other layers
            continue
        if rows is None:
            result = _adapted(layer, adapter, x, result)
        else:
            repeats = x.shape[0] // chosen.num_rows
            index = (rows.to(x.device)[:, None] * repeats + torch.arange(repeats, device=x.device)).flatten()
            result = result.index_copy(0, index, _adapted(layer, adapter, x[index], result[index]))
    return result


def _adapted(layer: Any, adapter: str, x: Tensor, result: Tensor) -> Tensor:
    """`result` + x A^T B^T alpha / rank, as PEFT computes it for an active adapter."""
    down, up = layer.lora_A[adapter], layer.lora_B[adapter]
    change: Tensor = up(down(x.to(down.weight.dtype))) * layer.scaling[adapter]
    return (result + change).to(result.dtype)
