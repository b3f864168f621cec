from __future__ import annotations

import pytest

from koffkit.data.holdout import held_out, split_documents, with_sides
from koffkit.errors import DataError


def test_documents_are_split_as_for_perplexity_with_one_on_either_side() -> None:
    texts = [f"text {i}" for i in range(200)]
    learned, held = split_documents(texts, 3, 0.25, "x")
    assert [text for number, text in enumerate(texts) if held_out(3, number, 0.25)] == held and sorted(
        learned + held
    ) == sorted(texts)
    for share in (1e-9, 1 - 1e-9):
        sides = split_documents(texts[:5], 0, share, "x")
        assert sorted(map(len, sides)) == [1, 4]
    with pytest.raises(DataError, match="x: the router needs at least 2 documents, found 1"):
        split_documents(texts[:1], 0, 0.5, "x")


@pytest.mark.parametrize("share", [1e-9, 0.2, 0.5, 1 - 1e-9])
def test_no_document_is_lost_and_order_is_kept(share: float) -> None:
    for count in range(8):
        sides = list(with_sides(range(count), 0, share))
        assert sorted(number for _, number in sides) == list(range(count))
        for side in (False, True):
            mine = [number for held, number in sides if held is side]
            assert mine == sorted(mine)
            assert mine or count < 2
    assert [held for held, _ in with_sides(range(5), 0, 0.0)] == [False] * 5
