from __future__ import annotations

import pytest

from koffkit.errors import UsageError
from koffkit.studies.points import points, split


def test_every_combination_is_a_point_with_a_name_of_its_own() -> None:
    found = points(["mask.global_sparsity=0.1,0.2", "memory.layers=all,{upper: 4}", "seed=3"])
    assert len(found) == 4
    assert next(iter(found)) == "global_sparsity=0.1,layers=all"
    assert found["global_sparsity=0.2,layers=_upper_4_"] == [
        "mask.global_sparsity=0.2",
        "memory.layers={upper: 4}",
        "seed=3",
    ]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("1,2", ["1", "2"]),
        ("{a: 1, b: [1, 2]},3", ["{a: 1, b: [1, 2]}", "3"]),
        ('"a,b", c', ['"a,b"', "c"]),
        ("one", ["one"]),
    ],
)
def test_commas_in_brackets_and_quotes_do_not_separate(text: str, parts: list[str]) -> None:
    assert split(text) == parts


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (["mask.global_sparsity"], r"write it as a\.b=V1,V2"),
        (["seed=1"], "nothing varies"),
        ([f"seed={','.join(map(str, range(1001)))}"], "1,001 points; use at most 1,000"),
    ],
)
def test_what_is_refused(sets: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        points(sets)


def test_two_points_of_one_name_are_refused() -> None:
    with pytest.raises(UsageError, match=r"two points are called lora=1"):
        points(["stages.recover.lr.lora=1,2", "stages.learn_masks.lr.lora=1,1"])
