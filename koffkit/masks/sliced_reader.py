"""A base checkpoint read as if it were sliced already: the exporter writes it, and the parity check compares
it before anything is written."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..arch.spec import Indices
from ..checkpoint.reader import CheckpointReader
from ..storage.tensors_file import TensorInfo, read_header
from .repair import Repair
from .slicing import Slices

Heard = Callable[[Any], Callable[[], Any]]


class SlicedReader(CheckpointReader):
    """A reader whose `tensors` have the sliced shapes, and which cuts rows as it reads them.

    Args:
        folder: the unsliced checkpoint.
        slices: the indices that stay, by tensor and dimension.
        zero_rows: rows of tensors that stay and become zero.
        repair: tensors that stand in for the checkpoint's, before they are cut.

    Raises:
        IntegrityError: files and index do not agree, or a file is damaged.
    """

    def __init__(
        self,
        folder: Path,
        slices: Slices,
        zero_rows: Mapping[str, Indices],
        repair: Repair | None = None,
    ) -> None:
        super().__init__(folder)
        self.added: set[str] = set()
        """Tensors that the base does not have."""
        self.heard: Heard | None = None
        """Given all that is read of the base, uncut; what it returns ends once that may be overwritten."""
        if repair is not None:
            self._put_in(repair)
        self._slices, self._zero_rows, self._whole = slices, zero_rows, self.tensors
        self.tensors = {
            name: replace(info, shape=_shape(info, slices.get(name))) for name, info in self._whole.items()
        }

    def _put_in(self, repair: Repair) -> None:
        """Read the tensors of the repair from its file; new ones are in the part of their module's weight."""
        for name, info in read_header(repair.path)[0].items():
            if name not in self.tensors:
                self.added.add(name)
            beside = self.tensors[f"{name.rpartition('.')[0]}.weight"].path
            self.by_file[beside].setdefault(name, info)
            self.tensors[name] = info

    def replaces(self, name: str) -> bool:
        """Whether a tensor comes from the repair, so that the base's own is not read."""
        return self._whole[name].path not in self.by_file

    def _rows(self, info: TensorInfo, at_once: int) -> Iterator[tuple[int, NDArray[Any]]]:
        for first, rows in super()._rows(info, at_once):
            done = None if self.heard is None else self.heard(rows.reshape(-1).view(np.uint8).data)
            yield first, rows
            if done is not None:
                done()

    def read_bytes(self, name: str, at_once: int) -> Iterator[bytes]:
        """A tensor's bytes in pieces of at most `at_once`."""
        for part in super().read_bytes(name, at_once):
            if self.heard is not None:
                self.heard(part)
            yield part

    def read_rows(self, name: str, at_once: int) -> Iterator[tuple[int, NDArray[Any]]]:
        """`(first row, rows)` after slicing; pieces of at most about `at_once` bytes before they are cut."""
        cuts, zero_rows, done = self._slices.get(name, {}), self._zero_rows.get(name), 0
        for first, rows in self._rows(self._whole[name], at_once):
            if zero_rows is not None:
                rows = rows.copy()  # others may still look at what was read
                rows[_within(zero_rows, first, len(rows))] = 0
            if 0 in cuts:
                rows = rows[_within(cuts[0], first, len(rows))]
            if 1 in cuts:
                rows = np.take(rows, cuts[1], axis=1)
            yield done, rows
            done += len(rows)

    def read_pieces(self, name: str, at_once: int) -> Iterator[Any]:
        """The sliced tensor in order, as buffers that are not overwritten."""
        if name not in self._slices and name not in self._zero_rows:
            yield from self.read_bytes(name, at_once)
            return
        for _, rows in self.read_rows(name, at_once):
            yield rows.reshape(-1).view(np.uint8).data


def _shape(info: TensorInfo, cuts: Mapping[int, Indices] | None) -> tuple[int, ...]:
    return tuple(
        len(cuts[d]) if cuts is not None and d in cuts else size for d, size in enumerate(info.shape)
    )


def _within(indices: Indices, first: int, count: int) -> Indices:
    """Those of the ascending `indices` that lie in a piece of `count` rows, counted from its first."""
    low, high = np.searchsorted(indices, (first, first + count))
    return indices[low:high] - first
