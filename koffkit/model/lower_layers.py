"""The layers below every gate and every memory: what the unpruned model computes there, the student computes
again, number for number. It is computed once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


class LowerLayers:
    """Layers whose output is recorded in one pass through a model and returned in the next.

    Args:
        layers: the lowest layers of the model; none: nothing is shared.
    """

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        self._layers = layers
        self._output: Any = None

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """Until the block ends, keep what comes out of the highest of them."""
        if not len(self._layers):
            yield
            return
        handle = self._layers[-1].register_forward_hook(self._keep)
        try:
            yield
        finally:
            handle.remove()

    def _keep(self, layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        self._output = output

    @contextmanager
    def replayed(self) -> Iterator[None]:
        """Until the block ends, compute nothing in these layers: the highest one returns what was recorded,
        the others hand on what they get. If nothing was recorded, compute it without gradients: nothing in
        them is trained."""
        usual = [vars(layer).get("forward") for layer in self._layers]  # None: the method of the class
        try:
            for layer in self._layers:
                layer.forward = self._instead(layer)
            yield
        finally:
            for layer, forward in zip(self._layers, usual, strict=True):
                del layer.forward
                if forward is not None:
                    layer.forward = forward
            self._output = None

    def _instead(self, layer: nn.Module) -> Callable[..., Any]:
        if self._output is None:
            without: Callable[..., Any] = torch.no_grad()(layer.forward)
            return without
        return self._replay if layer is self._layers[-1] else self._skip

    @staticmethod
    def _skip(hidden_states: Any, *_: Any, **__: Any) -> Any:
        return hidden_states

    def _replay(self, *_: Any, **__: Any) -> Any:
        return self._output
