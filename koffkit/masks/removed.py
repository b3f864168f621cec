"""What slicing takes from a tensor, and how it is put back. Pure arithmetic.

Rows that are gone or zeroed are kept whole; of the other rows, the columns that are gone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..arch.spec import Indices

ROWS, COLUMNS, WHOLE = ".rows", ".columns", ".whole"
"""Endings of names in the file of removed parts: rows that are gone, columns of the other rows, or all of a
tensor whose remaining part was changed as well."""


@dataclass(frozen=True)
class Gone:
    """The parts of one tensor [R, ...] that the backbone lacks.

    Args:
        shape: of the base's tensor.
        rows: that are gone or zeroed, ascending.
        columns: that are gone, ascending; empty for a vector.
        kept_rows, kept_columns: those of the backbone's tensor, in its order; zeroed rows are among them.
    """

    shape: tuple[int, ...]
    rows: Indices
    columns: Indices
    kept_rows: Indices
    kept_columns: Indices

    @classmethod
    def of(cls, shape: tuple[int, ...], cuts: Mapping[int, Indices], zeroed: Indices | None) -> Gone:
        """The parts of a tensor by its cuts (`koffkit.masks.slicing`)."""
        kept = [cuts.get(dimension, np.arange(size)) for dimension, size in enumerate(shape[:2])]
        rows = np.setdiff1d(np.arange(shape[0]), kept[0])
        if zeroed is not None:
            rows = np.union1d(rows, zeroed)
        if len(shape) == 1:
            return cls(shape, rows, np.arange(0), kept[0], np.arange(0))
        return cls(shape, rows, np.setdiff1d(np.arange(shape[1]), kept[1]), kept[0], kept[1])

    @property
    def other_rows(self) -> Indices:
        """Rows that the backbone has with the base's numbers."""
        return np.setdiff1d(np.arange(self.shape[0]), self.rows)

    def cuts(self) -> dict[str, dict[int, Indices]]:
        """The parts as cuts of the base's tensor, by the ending of their names; without empty ones."""
        parts = {}
        if len(self.rows):
            parts[ROWS] = {0: self.rows}
        if len(self.columns) and len(self.other_rows):
            parts[COLUMNS] = {0: self.other_rows, 1: self.columns}
        return parts

    def put_back(self, backbone: NDArray[Any], parts: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        """The base's tensor.

        Args:
            backbone: the backbone's tensor.
            parts: removed parts by the ending of their names.
        """
        whole = np.empty(self.shape, dtype=backbone.dtype)
        others = self.other_rows
        left = backbone[np.searchsorted(self.kept_rows, others)]
        if len(self.shape) == 1:
            whole[others] = left
        else:
            whole[np.ix_(others, self.kept_columns)] = left
        if ROWS in parts:
            whole[self.rows] = parts[ROWS]
        if COLUMNS in parts:
            whole[np.ix_(others, self.columns)] = parts[COLUMNS]
        return whole


__all__ = ["COLUMNS", "ROWS", "WHOLE", "Gone"]
