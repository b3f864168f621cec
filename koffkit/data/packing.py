"""A stream of tokens on disk, cut into sequences. Batches are pure functions of (visit, seed): nothing to
save or restore.

Legend: B batch, T sequence length.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor


MASK_SUFFIX = ".mask"


class PackedTokens:
    """Documents back to back in one int32 file, read through a memory map.

    Args:
        masked: beside it lies a file with one byte a token: whether the loss counts it.
    """

    def __init__(self, path: Path, *, masked: bool = False) -> None:
        self.path = path
        self.mask: NDArray[np.uint8] | None = (
            _mapped(path.with_suffix(MASK_SUFFIX), np.uint8) if masked else None
        )
        self.tokens: NDArray[np.int32] = _mapped(path, np.int32)
        self._order: tuple[tuple[int, ...], NDArray[np.int64]] | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    def batch(self, visit: int, batch_size: int, length: int, seed: int) -> Tensor:
        """The `visit`-th batch [B, T] of an endless run through the tokens.

        Every epoch shifts the cuts and shuffles anew, so that no document always starts a sequence.
        """
        import torch

        starts = [self._start(visit * batch_size + row, length, seed) for row in range(batch_size)]
        return torch.from_numpy(
            np.stack([self.tokens[start : start + length] for start in starts]).astype(np.int64)
        )

    def counted(self, visit: int, batch_size: int, length: int, seed: int) -> Tensor | None:
        """Which tokens of `batch` the loss counts, [B, T]; None: all."""
        import torch

        if self.mask is None:
            return None
        starts = [self._start(visit * batch_size + row, length, seed) for row in range(batch_size)]
        return torch.from_numpy(
            np.stack([self.mask[start : start + length] for start in starts]).astype(bool)
        )

    def _start(self, number: int, length: int, seed: int) -> int:
        per_epoch = max(1, (len(self.tokens) - length) // length)
        epoch, position = divmod(number, per_epoch)
        key = (seed, epoch, length)
        if self._order is None or self._order[0] != key:
            generator = np.random.default_rng(key)
            room = len(self.tokens) - per_epoch * length
            offset = int(generator.integers(0, min(room, length - 1) + 1))
            self._order = (key, generator.permutation(per_epoch) * length + offset)
        return int(self._order[1][position])

    def sequences(
        self, length: int, batch_size: int, max_tokens: int | None = None
    ) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Batches [B, T] in order for evaluation, each with the tokens that count (None: all). The incomplete
        last sequence is dropped unless it is the only one."""
        import torch

        total = min(len(self.tokens), max_tokens or len(self.tokens))
        length = min(length, total)
        count = total // length
        grid = np.asarray(self.tokens[: count * length], dtype=np.int64).reshape(count, length)
        counted = (
            None if self.mask is None else self.mask[: count * length].reshape(count, length).astype(bool)
        )
        for start in range(0, count, batch_size):
            part = slice(start, start + batch_size)
            yield torch.from_numpy(grid[part]), None if counted is None else torch.from_numpy(counted[part])


def _mapped(path: Path, dtype: type[Any]) -> NDArray[Any]:
    """A file as an array that is not read before it is needed; an empty file cannot be mapped."""
    return np.memmap(path, dtype=dtype, mode="r") if path.stat().st_size else np.empty(0, dtype=dtype)
