"""Documents back to back, cut into sequences of one length.

Legend: B batch, T sequence length.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..model.batch import Batch

MASK_SUFFIX = ".mask"
STARTS_SUFFIX = ".starts"
Ids = NDArray[np.int64]


class PackedTokens:
    """Documents back to back in one int32 file, read through a memory map.

    Args:
        masked: there is a second file with one byte per token: whether the loss counts it.
        begin: the token that every sequence begins with, for tokenizers that add one to every text: a model
            that never saw a text without it is a poor teacher there. None: sequences begin anywhere.
        apart: batches say where documents begin, from a file with the index of each one's first token.
    """

    def __init__(
        self, path: Path, *, masked: bool = False, begin: int | None = None, apart: bool = False
    ) -> None:
        self.path, self.begin = path, begin
        self.mask: NDArray[np.uint8] | None = (
            _mapped(path.with_suffix(MASK_SUFFIX), np.uint8) if masked else None
        )
        self.starts: Ids | None = _mapped(path.with_suffix(STARTS_SUFFIX), np.int64) if apart else None
        self.tokens: NDArray[np.int32] = _mapped(path, np.int32)
        self._order: tuple[tuple[int, ...], Ids] | None = None
        self._first: int | None = None  # number of the first sequence; None: cuts move

    def __len__(self) -> int:
        return len(self.tokens)

    def batch(self, visit: int, batch_size: int, length: int, seed: int) -> Batch:
        """The batch with the number `visit` in an endless run through the tokens.

        Every epoch shifts the cuts and shuffles anew, so that no document always starts a sequence; after
        `keep_cuts` it only shuffles.
        """
        width = self._width(length)
        numbers = range(visit * batch_size, (visit + 1) * batch_size)
        starts = [self._start(number, width, seed) for number in numbers]
        batch = self._batch(starts, length)
        return batch if self._first is None else self._numbered(batch, starts, width)

    def keep_cuts(self, first: int) -> None:
        """From now on every epoch, with any seed, has the same sequences, and batches say which they hold.

        Args:
            first: the number of the first one.
        """
        self._first, self._order = first, None

    def _numbered(self, batch: Batch, starts: list[int], width: int) -> Batch:
        import torch

        assert self._first is not None
        return batch._replace(numbers=torch.tensor([self._first + start // width for start in starts]))

    def sequences_of_epoch(self, length: int) -> int:
        """How many batches of one sequence share no token."""
        return self._per_epoch(self._width(length))

    def _per_epoch(self, width: int) -> int:
        if self._first is not None:
            return len(self.tokens) // width
        return max(1, (len(self.tokens) - width) // width)

    def _batch(self, starts: list[int], length: int) -> Batch:
        """The sequences that start at these tokens of the stream."""
        import torch

        ids = torch.from_numpy(np.stack([self._tokens(start, length) for start in starts]))
        loss_mask = positions = None
        if self.mask is not None:
            counted = [self._mask_of(self.mask, start, length) for start in starts]
            loss_mask = torch.from_numpy(np.stack(counted))
        if self.starts is not None:
            rows = [self._positions(self.starts, start, length) for start in starts]
            positions = torch.from_numpy(np.stack(rows))
        return Batch(ids, loss_mask, positions)

    def _width(self, length: int) -> int:
        """How many tokens of the stream a sequence uses up."""
        return length if self.begin is None else max(1, length - 1)

    def _adds(self, start: int, length: int) -> bool:
        """Whether a sequence gets a first token that is not there already."""
        whole = start + length <= len(self.tokens)
        return self.begin is not None and not (whole and int(self.tokens[start]) == self.begin)

    def _tokens(self, start: int, length: int) -> Ids:
        if not self._adds(start, length):
            return np.asarray(self.tokens[start : start + length], dtype=np.int64)
        rest = np.asarray(self.tokens[start : start + length - 1], dtype=np.int64)
        return np.concatenate([np.array([self.begin], dtype=np.int64), rest])

    def _mask_of(self, mask: NDArray[np.uint8], start: int, length: int) -> NDArray[np.bool_]:
        if not self._adds(start, length):
            return np.asarray(mask[start : start + length], dtype=bool)
        return np.concatenate(
            [np.zeros(1, dtype=bool), np.asarray(mask[start : start + length - 1], dtype=bool)]
        )

    def _positions(self, starts: Ids, start: int, length: int) -> Ids:
        if not self._adds(start, length):
            return document_positions(starts, start, length)
        rest = document_positions(starts, start, length - 1)
        first = rest == np.arange(length - 1)  # the document that the added token begins
        return np.concatenate([np.zeros(1, dtype=np.int64), np.where(first, rest + 1, rest)])

    def _start(self, number: int, length: int, seed: int) -> int:
        per_epoch = self._per_epoch(length)
        epoch, position = divmod(number, per_epoch)
        key = (seed, epoch, length)
        if self._order is None or self._order[0] != key:
            generator = np.random.default_rng(key)
            room = len(self.tokens) - per_epoch * length
            offset = 0
            if self._first is None:
                offset = int(generator.integers(0, min(room, length - 1) + 1))
            self._order = (key, generator.permutation(per_epoch) * length + offset)
        return int(self._order[1][position])

    def sequences(
        self, length: int, batch_size: int, max_tokens: int | None = None, *, from_end: bool = False
    ) -> Iterator[Batch]:
        """Batches in order for evaluation. The incomplete last sequence is dropped unless it is the only
        one.

        Args:
            length: tokens of a sequence.
            batch_size: sequences of a batch.
            max_tokens: at most so many tokens; None: all.
            from_end: the last ones instead of the first.
        """
        total = min(len(self.tokens), max_tokens or len(self.tokens))
        length = min(length, total)
        width = self._width(length)
        offset = len(self.tokens) - total if from_end else 0
        starts = [offset + place * width for place in range(total // width)]
        for first in range(0, len(starts), batch_size):
            yield self._batch(starts[first : first + batch_size], length)


def document_positions(starts: Ids, first: int, length: int) -> Ids:
    """Positions [T] within their documents of the tokens `first` to `first + length` of a stream; those of a
    document that began before `first` are counted from there.

    Args:
        starts: index of the first token of every document, ascending.
    """
    indices = np.arange(first, first + length)
    begun = starts[np.maximum(np.searchsorted(starts, indices, side="right") - 1, 0)]
    return np.asarray(indices - np.clip(begun, first, indices), dtype=np.int64)


def _mapped(path: Path, dtype: type[Any]) -> NDArray[Any]:
    """A memory-mapped file, or an empty array for an empty file, which cannot be mapped."""
    return np.memmap(path, dtype=dtype, mode="r") if path.stat().st_size else np.empty(0, dtype=dtype)
