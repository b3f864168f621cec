"""Which documents are held out of training: a pure function of the seed and a document's number."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import TypeVar

from ..errors import DataError

Item = TypeVar("Item")


def held_out(seed: int, number: int, share: float) -> bool:
    """Whether the `number`-th document of a source is held out."""
    digest = hashlib.sha256(f"{seed}/{number}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def with_sides(items: Iterable[Item], seed: int, share: float) -> Iterator[tuple[bool, Item]]:
    """Documents, each with whether it is held out. Where one side would stay empty, the last document of the
    other goes there, if it has two.

    Args:
        items: documents in order, which is also their order within each side.
        seed: the recipe's seed.
        share: share to hold out, in [0, 1); 0: none is.
    """
    waiting: dict[bool, list[Item]] = {False: [], True: []}  # the last document of each side
    more = {False: False, True: False}
    for number, item in enumerate(items):
        side = share > 0 and held_out(seed, number, share)
        if waiting[side]:
            more[side] = True
            yield side, waiting[side].pop()
        waiting[side].append(item)
    for side, last in waiting.items():
        alone = share > 0 and more[side] and not waiting[not side]
        yield from ((not side if alone else side, item) for item in last)


def split_documents(texts: Iterable[str], seed: int, share: float, where: str) -> tuple[list[str], list[str]]:
    """Split documents into those to learn from and held-out ones, the same that perplexity is measured on; at
    least one on either side.

    Args:
        texts: documents.
        seed: the recipe's seed.
        share: share to hold out, in (0, 1).
        where: the source's field, for errors.

    Raises:
        DataError: there are fewer than two.
    """
    sides: tuple[list[str], list[str]] = ([], [])
    for side, text in with_sides(texts, seed, share):
        sides[side].append(text)
    if not all(sides):
        count = len(sides[0]) + len(sides[1])
        raise DataError(f"{where}: the router needs at least 2 documents, found {count}; add text.")
    return sides
