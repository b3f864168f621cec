from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from koffkit.data.packing import PackedTokens, document_positions


@pytest.fixture
def packed(tmp_path: Path) -> PackedTokens:
    path = tmp_path / "tokens.bin"
    np.arange(1000, dtype=np.int32).tofile(path)
    return PackedTokens(path)


def test_a_batch_is_a_pure_function_of_visit_and_seed(packed: PackedTokens) -> None:
    in_order = [packed.batch(visit, 3, 16, seed=7) for visit in range(50)]
    alone = PackedTokens(packed.path).batch(33, 3, 16, seed=7)
    assert alone.ids.tolist() == in_order[33].ids.tolist()
    assert alone.ids.tolist() != packed.batch(33, 3, 16, seed=8).ids.tolist()


def test_sequences_are_consecutive_and_an_epoch_repeats_none(packed: PackedTokens) -> None:
    rows = [packed.batch(visit, 1, 16, seed=0).ids[0].tolist() for visit in range((1000 - 16) // 16)]
    assert all(row == list(range(row[0], row[0] + 16)) for row in rows)
    tokens = [token for row in rows for token in row]
    assert len(set(tokens)) == len(tokens) > 950


def test_cuts_that_are_kept_give_every_epoch_and_seed_the_same_numbered_sequences(
    packed: PackedTokens,
) -> None:
    packed.keep_cuts(100)
    per_epoch = packed.sequences_of_epoch(16)
    assert per_epoch == 1000 // 16
    seen = []
    for epoch, seed in ((0, 0), (1, 0), (0, 5)):
        batches = [packed.batch(epoch * per_epoch + i, 1, 16, seed) for i in range(per_epoch)]
        assert all(batch.numbers is not None for batch in batches)
        seen.append([(batch.numbers.item(), batch.ids[0].tolist()) for batch in batches])  # type: ignore[union-attr]
    assert seen[0] != seen[1] and seen[0] != seen[2]
    expected = [(100 + i, list(range(16 * i, 16 * i + 16))) for i in range(per_epoch)]
    assert sorted(seen[0]) == sorted(seen[1]) == sorted(seen[2]) == expected


def test_epochs_cut_at_different_places(packed: PackedTokens) -> None:
    per_epoch = (1000 - 16) // 16
    first, second = (
        {packed.batch(e * per_epoch + i, 1, 16, seed=0).ids[0, 0].item() % 16 for i in range(per_epoch)}
        for e in (0, 1)
    )
    assert len(first) == len(second) == 1 and first != second


def test_evaluation_reads_in_order_up_to_a_limit(packed: PackedTokens) -> None:
    batches = [batch.ids for batch in packed.sequences(16, 4, max_tokens=200)]
    flat = [token for batch in batches for row in batch.tolist() for token in row]
    assert flat == list(range(192))
    assert [len(batch) for batch in batches] == [4, 4, 4]


def test_evaluation_reads_the_last_tokens_where_it_should(packed: PackedTokens) -> None:
    batches = [batch.ids for batch in packed.sequences(16, 4, max_tokens=200, from_end=True)]
    flat = [token for batch in batches for row in batch.tolist() for token in row]
    assert flat == list(range(800, 992))


def test_text_shorter_than_a_sequence_is_still_evaluated(packed: PackedTokens) -> None:
    assert [batch.ids.tolist() for batch in packed.sequences(5000, 4)] == [[list(range(1000))]]


@pytest.fixture
def begun(tmp_path: Path) -> PackedTokens:
    """Documents of 1 to 9 tokens, each after the token 7, and a mask."""
    path = tmp_path / "begun.bin"
    lengths = np.random.default_rng(0).integers(1, 10, 200)
    ids = np.concatenate([[7, *range(100, 100 + n)] for n in lengths]).astype(np.int32)
    ids.tofile(path)
    (ids % 2).astype(np.uint8).tofile(path.with_suffix(".mask"))
    return PackedTokens(path, masked=True, begin=7)


def test_every_sequence_begins_as_the_tokenizer_begins_a_text(begun: PackedTokens) -> None:
    for visit in range(200):
        ids, loss_mask, *_ = begun.batch(visit, 3, 16, seed=1)
        batch = ids.numpy()
        assert batch.shape == (3, 16)
        assert (batch[:, 0] == 7).all()
        assert loss_mask is not None
        assert loss_mask.numpy()[:, 1:].tolist() == (batch[:, 1:] % 2 == 1).tolist()
    assert (batch[:, 1] != 7).all()


def test_evaluation_sees_every_token_after_a_beginning(begun: PackedTokens) -> None:
    parts = list(begun.sequences(16, 4))
    rows = np.concatenate([part.ids.numpy() for part in parts])
    assert (rows[:, 0] == 7).all()
    assert len(rows) == len(begun) // 15
    stream = begun.tokens[: len(rows) * 15].tolist()
    for number, row in enumerate(rows.tolist()):
        assert stream[number * 15 : number * 15 + 15] in (row[1:], row[:-1])


def test_a_text_shorter_than_a_sequence_is_one(tmp_path: Path) -> None:
    path = tmp_path / "short.bin"
    np.arange(100, 105, dtype=np.int32).tofile(path)
    (batch,) = PackedTokens(path, begin=7).sequences(16, 4)
    assert batch.ids.tolist() == [[7, 100, 101, 102, 103]]


def test_positions_begin_anew_with_every_document() -> None:
    starts = np.array([0, 3, 4, 4, 9])  # one document of one token, one without any
    assert document_positions(starts, 0, 11).tolist() == [0, 1, 2, 0, 0, 1, 2, 3, 4, 0, 1]
    assert document_positions(starts, 2, 4).tolist() == [0, 0, 0, 1]


@pytest.mark.parametrize("begin", [7, None])
def test_a_batch_says_where_documents_begin(tmp_path: Path, begin: int | None) -> None:
    """Documents of 1 to 9 tokens after the token 7, which a sequence cut elsewhere begins with, too."""
    path = tmp_path / "apart.bin"
    lengths = np.random.default_rng(0).integers(1, 10, 200)
    np.concatenate([[7, *range(100, 100 + n)] for n in lengths]).astype(np.int32).tofile(path)
    np.concatenate([[0], (lengths + 1).cumsum()[:-1]]).tofile(path.with_suffix(".starts"))
    packed = PackedTokens(path, begin=begin, apart=True)
    batches = [packed.batch(visit, 3, 16, seed=1) for visit in range(50)] + list(packed.sequences(16, 4))
    for batch in batches:
        assert batch.positions is not None
        for ids, positions in zip(batch.ids.tolist(), batch.positions.tolist(), strict=True):
            expected: list[int] = []
            for place, token in enumerate(ids):
                expected.append(0 if place == 0 or token == 7 else expected[-1] + 1)
            assert positions == expected
    assert PackedTokens(path, begin=begin).batch(0, 3, 16, seed=1).positions is None
