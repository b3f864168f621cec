"""The weights of a model, read from disk while they are multiplied: a few rows at a time are in memory, never
a matrix.

Legend: N rows of the input, all conditions and tokens, I inputs, O outputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from ..checkpoint.float_rows import FloatRows
from ..masks.slicing import ADAPTER_PREFIX

AT_ONCE = 1 << 20
"""Bytes of a matrix in its file: what they become in float64 stays in the processor's cache between its
conversion and its product."""


class Weights:
    """Parameters by their names in the (perhaps peft-wrapped) model.

    Args:
        reader: the checkpoint.
        adapters: LoRA by name of the adapter.
        dtype: of what is read.
        repair: tensors that stand in for the checkpoint's.
    """

    def __init__(
        self,
        reader: FloatRows,
        adapters: Mapping[str, Mapping[str, Tensor]],
        dtype: torch.dtype,
        repair: Mapping[str, Tensor],
    ) -> None:
        self.reader, self.adapters, self.dtype, self.repair = reader, adapters, dtype, repair

    def rows(self, name: str) -> Iterator[tuple[int, Tensor]]:
        """`(first row, rows)` of a tensor; a piece is valid until the next one is read."""
        own = self._beside(name)
        if own is None:
            yield from self.reader.read_float_rows(_plain(name), AT_ONCE, self.dtype)
        else:
            yield 0, own.to(self.dtype)

    def vector(self, name: str) -> Tensor:
        """A small tensor as a whole."""
        own = self._beside(name)
        if own is not None:
            return own.to(self.dtype)
        out = torch.empty(tuple(self.reader.tensors[_plain(name)].shape), dtype=self.dtype)
        return self.reader.read(_plain(name), out)

    def _beside(self, name: str) -> Tensor | None:
        """A tensor that is not the checkpoint's own."""
        for slot, tensors in self.adapters.items():
            if name.endswith(f".{slot}.weight"):
                return tensors[name.removesuffix(f".{slot}.weight") + ".weight"]
        return self.repair.get(_plain(name))


def _plain(name: str) -> str:
    """The checkpoint's name of a parameter of a model that peft has wrapped."""
    return name.removeprefix(ADAPTER_PREFIX).replace(".base_layer.", ".")


def read_on_demand(model: nn.Module, weights: Weights, apart: str) -> None:
    """Make every linear module of a model without weights read its own while it runs, and give the others
    theirs, which are vectors.

    Args:
        model: with parameters on device meta.
        weights: where they are.
        apart: a parameter that stays without values: the embeddings'.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            bias = None if module.bias is None else f"{name}.bias"
            setattr(module, "forward", partial(_multiply, weights, f"{name}.weight", bias))  # noqa: B010
            continue
        for kind, parameter in module.named_parameters(recurse=False):
            full = f"{name}.{kind}"
            if parameter.is_meta and _plain(full) != apart:
                setattr(module, kind, nn.Parameter(weights.vector(full), requires_grad=False))


def _multiply(weights: Weights, weight: str, bias: str | None, values: Tensor) -> Tensor:
    """`values` [..., I] times a matrix [O, I], plus a bias [O]: [..., O]."""
    # The few values are the columns: a product the other way round puts every piece into another order first.
    columns = values.reshape(-1, values.shape[-1]).t().contiguous()
    with torch._C.DisableTorchFunction():  # the watch for float32 would cost as much as reading
        product = torch.cat([rows @ columns for _, rows in weights.rows(weight)]).t().contiguous()
    product = product if bias is None else product + weights.vector(bias)
    return product.view(*values.shape[:-1], -1)
