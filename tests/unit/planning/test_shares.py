"""Processes divide the sequences of a step without gap or overlap; what cannot be divided is refused."""

from __future__ import annotations

from typing import Any

import pytest

from koffkit.errors import UsageError
from koffkit.planning.shares import require_divisible, shares_of
from koffkit.recipe.load import recipe_from_tree


@pytest.mark.parametrize("parts", [1, 2, 3, 5])
@pytest.mark.parametrize("batch_size", [1, 2, 3, 8])
@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_the_shares_of_all_make_up_the_step(parts: int, batch_size: int, size: int) -> None:
    shares = [shares_of(parts, batch_size, rank, size) for rank in range(size)]
    rows = [
        [(share.part, row) for share in own for row in range(share.rows.start, share.rows.stop)]
        for own in shares
    ]
    assert [place for own in rows for place in own] == [
        (part, row) for part in range(parts) for row in range(batch_size)
    ]
    counts = [len(own) for own in rows]
    assert max(counts) - min(counts) <= 1
    fractions = [sum(share.fraction for own in shares for share in own if share.part == 0)]
    assert fractions == pytest.approx([1.0])


def test_one_process_has_every_batch_whole() -> None:
    shares = shares_of(3, 4, 0, 1)
    assert [share.whole for share in shares] == [True] * 3
    assert [share.fraction for share in shares] == [1.0] * 3
    assert not shares_of(1, 4, 0, 2)[0].whole


def recipe(tmp_path: Any, batch_size: int, parts: int, retention: int | None = None, more: Any = ()) -> Any:
    tree: dict[str, Any] = {
        "koffkit": 1,
        "name": "r",
        "base": {"model": "m"},
        "domains": {"a": {"text": "a.txt"}, "b": {"text": "b.txt"}},
        "retention": {"text": "c.txt"},
        "memory": {"layers": "all", "lora": None, "kv": {"tokens": 2}},
        "mask": {"structures": ["mlp_neuron"], "global_sparsity": 0.1},
        "train": {"gradient_accumulation": parts},
        "stages": [{"learn_masks": {"max_steps": 2, "batch_size": batch_size}}, *more],
    }
    if retention is not None:
        tree["distill"] = {"retention_batch_size": retention}
    return recipe_from_tree(tree, [], tmp_path).recipe


@pytest.mark.parametrize(
    ("batch_size", "parts", "retention", "shard", "problem"),
    [
        (
            1,
            3,
            None,
            False,
            "stages.learn_masks.batch_size: 1 x train.gradient_accumulation: 3 are 3 sequences",
        ),
        (4, 1, 2, False, "distill.retention_batch_size: 2 x train.gradient_accumulation: 1 are 2 sequences"),
        (1, 6, None, True, "give 4 processes 1 to 2 batches each, which --shard cannot do"),
        (1, 6, None, False, None),
        (4, 1, 4, True, None),
        (1, 8, None, True, None),
    ],
)
def test_what_cannot_be_divided_is_refused(
    batch_size: int,
    parts: int,
    retention: int | None,
    shard: bool,
    problem: str | None,
    tmp_path: Any,
) -> None:
    given = recipe(tmp_path, batch_size, parts, retention)
    if problem is None:
        require_divisible(given, 4, shard=shard)
        return
    with pytest.raises(UsageError, match=problem):
        require_divisible(given, 4, shard=shard)


def test_weights_that_train_are_not_divided(tmp_path: Any) -> None:
    trained = recipe(tmp_path, 4, 1, more=[{"recover": {"max_steps": 1, "lr": {"backbone": 1e-3}}}])
    require_divisible(trained, 2, shard=False)
    with pytest.raises(
        UsageError, match=r"stages.recover.lr.backbone: 0.001 trains weights that --shard div"
    ):
        require_divisible(trained, 2, shard=True)
