"""Smaller memories: int8 or int6 with scales, and LoRA factors of a lower rank. Pure arithmetic on tensors.

Legend: R LoRA rank, K KV heads, P memory tokens, H head dim.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

SCALE = ".scale"
NEURON_COLUMNS = re.compile(r"layers\.\d+\.down_proj\.weight")
LEVELS = {"int8": 127, "int6": 31}


def quantise(values: Tensor, dim: int, levels: int) -> tuple[Tensor, Tensor]:
    """Quantise symmetrically along `dim`.

    Args:
        values: any shape.
        dim: the dimension that shares a scale.
        levels: the largest integer.

    Returns:
        Integers in -levels..levels (int8) of the same shape, and float16 scales of size 1 in `dim`.
    """
    scale = (values.abs().amax(dim, keepdim=True) / levels).to(torch.float16)
    steps = torch.where(scale > 0, scale.float(), 1.0)  # values too small for a float16 scale become 0
    return (values / steps).round().clamp(-levels, levels).to(torch.int8), scale


def pack(tensors: Mapping[str, Tensor], dtype: str) -> dict[str, Tensor]:
    """Quantise tensors: `NAME` becomes int8 or int6, with `NAME.scale` beside it.

    A LoRA factor has one scale for each of its R components, a KV memory [K, P, H] one for each head and
    token, restored neurons one for each of their rows and columns. A dimension that is not a multiple of four
    stays int8.

    Args:
        tensors: LoRA factors, KV memories or weights of restored neurons by name.
        dtype: `int8` or `int6`.
    """
    packed = {}
    for name, values in tensors.items():
        dim = _dim(name)
        integers, packed[name + SCALE] = quantise(values, dim, LEVELS[dtype])
        packed[name] = (
            _four_in_three(integers, dim) if dtype == "int6" and values.shape[dim] % 4 == 0 else integers
        )
    return packed


def unpack(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `pack`, in float32; tensors without a scale stay as they are."""
    unpacked = {}
    for name, values in tensors.items():
        if name.endswith(SCALE):
            continue
        scale = tensors.get(name + SCALE)
        if scale is None:
            unpacked[name] = values
        else:
            integers = _three_to_four(values, _dim(name)) if values.dtype == torch.uint8 else values
            unpacked[name] = integers.float() * scale.float()
    return unpacked


def _dim(name: str) -> int:
    """The dimension that shares a scale."""
    return 0 if "lora_B" in name or NEURON_COLUMNS.fullmatch(name) else -1


def _four_in_three(integers: Tensor, dim: int) -> Tensor:
    """Four integers of -31..31 in three bytes, along `dim`."""
    a, b, c, d = _by(4, integers.to(torch.int32) + 32, dim).unbind(-1)
    whole = a | b << 6 | c << 12 | d << 18
    parts = torch.stack([whole & 255, whole >> 8 & 255, whole >> 16], dim=-1)
    return parts.to(torch.uint8).flatten(-2).movedim(-1, dim).contiguous()


def _three_to_four(packed: Tensor, dim: int) -> Tensor:
    """The inverse of `_four_in_three`."""
    x, y, z = _by(3, packed.to(torch.int32), dim).unbind(-1)
    whole = x | y << 8 | z << 16
    parts = torch.stack([whole >> shift & 63 for shift in (0, 6, 12, 18)], dim=-1)
    return parts.flatten(-2).movedim(-1, dim) - 32


def _by(count: int, values: Tensor, dim: int) -> Tensor:
    """`dim` moved to the end and cut into groups: [..., groups, count]."""
    moved = values.movedim(dim, -1)
    return moved.reshape(*moved.shape[:-1], -1, count)


class Factors:
    """B @ A of one LoRA module, decomposed so that its rank can be cut.

    Args:
        a, b: [R, in] and [out, R].
    """

    def __init__(self, a: Tensor, b: Tensor) -> None:
        # QR of the factors first: the decomposition is of an R x R matrix, whatever the width of the model.
        left, upper = torch.linalg.qr(b.double())
        right, lower = torch.linalg.qr(a.double().T)
        u, self.singular, v = torch.linalg.svd(upper @ lower.T)
        self._left, self._right = left @ u, v @ right.T

    def rank_for(self, energy: float) -> int:
        """The smallest rank that keeps this share of the squared Frobenius norm of B @ A; at least 1."""
        kept = self.singular.square().cumsum(0)
        return min(int((kept < energy * kept[-1]).sum()) + 1, len(kept))

    def energy_at(self, rank: int) -> float:
        """The share of the squared Frobenius norm that a rank keeps."""
        squares = self.singular.square()
        total = float(squares.sum())
        return 1.0 if total == 0 else float(squares[:rank].sum()) / total

    def cut(self, rank: int) -> tuple[Tensor, Tensor]:
        """`a` and `b` of this rank, in float32; each singular value is shared equally by both, which suits
        scales per component."""
        root = self.singular[:rank].sqrt()
        return (root[:, None] * self._right[:rank]).float().contiguous(), (
            self._left[:, :rank] * root
        ).float().contiguous()
