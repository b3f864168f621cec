"""The order of stages follows from what they declare."""

from __future__ import annotations

import pytest

from koffkit.errors import UsageError
from koffkit.recipe.declaration import StageDeclaration
from koffkit.recipe.stages import KINDS, in_order, order_error, predecessors


def stage(
    name: str, *, after: tuple[str, ...] = (), before: tuple[str, ...] = (), learns_masks: bool = False
) -> StageDeclaration:
    declared = {"name": name, "after": after, "before": before, "learns_masks": learns_masks}
    return type(name, (StageDeclaration,), declared)()


def test_our_stages_are_in_the_order_they_declare() -> None:
    assert list(KINDS) == ["learn_masks", "select_masks", "restore", "recover", "route", "evaluate"]


def test_a_stage_of_another_package_goes_where_it_says() -> None:
    late = stage("a_late_one", after=("evaluate",))
    early = stage("z_early_one", before=("recover",))
    assert in_order(KINDS | {"a_late_one": late, "z_early_one": early}) == [
        "learn_masks",
        "select_masks",
        "restore",
        "z_early_one",
        "recover",
        "route",
        "evaluate",
        "a_late_one",
    ]


def test_what_must_come_earlier_is_known_through_stages_in_between() -> None:
    chain = {"a": stage("a"), "b": stage("b", after=("a",)), "c": stage("c", after=("b", "nowhere"))}
    assert predecessors(chain)["c"] == {"a", "b"}


def test_masks_are_learned_first_whatever_else_is_declared() -> None:
    assert in_order({"a": stage("a"), "z": stage("z", learns_masks=True)}) == ["z", "a"]


def test_declarations_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(UsageError, match=r"the order of a, b contradicts itself"):
        in_order({"a": stage("a", after=("b",)), "b": stage("b", after=("a",))})


@pytest.mark.parametrize(
    ("names", "right"),
    [
        (["learn_masks"], True),
        (["learn_masks", "recover", "evaluate"], True),
        (["learn_masks", "evaluate", "recover"], False),
        (["recover", "learn_masks"], False),
        (["select_masks", "recover"], True),
        (["learn_masks", "select_masks"], False),
        (["recover"], False),
        (["learn_masks", "learn_masks"], False),
        (["learn_masks", "recover", "recover"], False),
    ],
)
def test_the_order_in_a_recipe_is_checked(names: list[str], right: bool) -> None:
    assert (order_error(names) is None) == right
