"""How products of float32 matrices are computed while a recipe runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def multiplying(precision: str) -> Iterator[None]:
    """Products of float32 matrices as `train.float32_matmul_precision` says, and afterwards as before.

    Args:
        precision: `highest`, `high` or `medium`, as `torch.set_float32_matmul_precision` has them.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
