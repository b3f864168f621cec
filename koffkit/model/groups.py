"""The rows of a batch, grouped by the memory that they have, for batched products.

A weight that differs from row to row is then read once for each memory and not once for each row, in one
batched product for all memories. Groups are padded to the size of the largest one.

Legend: B rows, M memories, G rows of the largest group, T tokens, D channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

Name = TypeVar("Name")
SPARE = 1.5
"""Rows per memory up to which each row is a group of its own."""


@dataclass(frozen=True)
class _Places:
    """Which rows go where, for one number of repeats.

    Args:
        members: [M * G] rows by group; a group that is not full repeats its first row.
        rows: the rows that have a memory; None: all B, in order.
        slots: where in `members` each of `rows` is; None: in the same order.
    """

    members: Tensor | None
    rows: Tensor | None
    slots: Tensor | None


@dataclass(frozen=True)
class Groups:
    """Rows by memory; make it with `of`.

    Args:
        num_rows: B, before generation repeats each of them for beams or several samples.
        members: rows of each of the M groups; none is empty.
    """

    num_rows: int
    members: Sequence[Sequence[int]]
    _places: dict[tuple[int, torch.device], _Places] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def of(cls, rows: Sequence[Name | None], memories: Sequence[Name]) -> tuple[Groups, list[Name | None]]:
        """Group rows, and name the memory of each group; None: a group that adds nothing.

        Where hardly two rows share a memory, every row is a group: weights that are read once more cost less
        than putting rows in order.

        Args:
            rows: the memory of each row, or None.
            memories: those that count, each of some row.
        """
        if len(rows) <= SPARE * len(memories):
            kept = [name if name in memories else None for name in rows]
            return cls(len(rows), [[row] for row in range(len(rows))]), kept
        members = [[row for row, own in enumerate(rows) if own == name] for name in memories]
        return cls(len(rows), members), list(memories)

    def gather(self, x: Tensor) -> Tensor:
        """x [B, T, D] by group, [M, G * T, D]."""
        members = self._at(x).members
        grouped = x if members is None else x.index_select(0, members)
        return grouped.reshape(len(self.members), -1, x.shape[-1])

    def add_product(self, output: Tensor, inner: Tensor, weight: Tensor) -> Tensor:
        """`output` [B, T, D'] plus the product of each row that has a memory.

        Args:
            inner: [M, G * T, R], as `gather` orders rows.
            weight: [M, R, D'].
        """
        places = self._at(output)
        if places.slots is None and places.rows is None and output.dtype == inner.dtype:
            into = output.reshape(*inner.shape[:2], output.shape[-1])
            return torch.baddbmm(into, inner, weight).reshape(output.shape)
        change = torch.bmm(inner, weight).reshape(-1, *output.shape[1:])
        if places.slots is not None:
            change = change.index_select(0, places.slots)
        change = change.to(output.dtype)
        return output + change if places.rows is None else output.index_add(0, places.rows, change)

    def _at(self, x: Tensor) -> _Places:
        repeats = x.shape[0] // self.num_rows
        found = self._places.get((repeats, x.device))
        if found is None:
            found = self._places[repeats, x.device] = self._repeated(repeats, x.device)
        return found

    def _repeated(self, repeats: int, device: torch.device) -> _Places:
        groups = [[row * repeats + k for row in group for k in range(repeats)] for group in self.members]
        size = max(map(len, groups))
        members = [row for group in groups for row in [*group, *group[:1] * (size - len(group))]]
        slots = {row: place * size + k for place, group in enumerate(groups) for k, row in enumerate(group)}
        rows, all_rows = sorted(slots), list(range(self.num_rows * repeats))
        order = [slots[row] for row in rows]
        return _Places(
            None if members == all_rows else torch.tensor(members, device=device),
            None if rows == all_rows else torch.tensor(rows, device=device),
            None if order == list(range(len(members))) else torch.tensor(order, device=device),
        )
