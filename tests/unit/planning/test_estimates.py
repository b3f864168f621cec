from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from koffkit.planning.estimates import asked_tokens, net_of, stage_seconds, training_tokens
from koffkit.planning.plan import plan_of
from koffkit.recipe.load import load_recipe
from koffkit.recipe.schema import Recipe

from ...common import recipe_dict


def recipe_of(tmp_path: Path, **changes: Any) -> Recipe:
    return Recipe.model_validate(recipe_dict(tmp_path / "base", tmp_path / "data") | changes)


def test_what_is_asked_of_a_domain_adds_up_to_what_training_reads(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path)
    asked = asked_tokens(recipe)
    assert sum(asked.values()) == sum(training_tokens(recipe).values())
    assert asked["retention"] == 6 * 2 * 16 // 3
    assert asked["north"] == asked["south"]


def test_weights_shift_it(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, distill={"top_k": 50, "domain_weights": {"north": 3.0}}, retention=None)
    asked = asked_tokens(recipe)
    assert asked["north"] == 3 * asked["south"]
    assert "retention" not in asked


def test_a_backbone_that_trains_in_recover_reads_retention_text_there(tmp_path: Path) -> None:
    stages: list[dict[str, Any]] = [
        {"select_masks": {"selector": "magnitude"}},
        {"recover": {"max_steps": 6, "batch_size": 2, "lr": {"backbone": 1e-3}}},
        {"evaluate": {}},
    ]
    trained = recipe_of(tmp_path, stages=stages)
    assert asked_tokens(trained)["retention"] == 6 * 2 * 16 // 3
    assert sum(asked_tokens(trained).values()) == sum(training_tokens(trained).values())
    frozen = recipe_of(tmp_path, stages=[*stages[:1], {"recover": {"max_steps": 6}}, *stages[2:]])
    assert asked_tokens(frozen)["retention"] == 0


def test_every_stage_has_a_time_or_says_that_the_text_decides(tmp_path: Path) -> None:
    times = stage_seconds(recipe_of(tmp_path), 1000)
    assert list(times) == ["learn_masks", "recover", "route", "evaluate"]
    low, high = times["learn_masks"]["2 CPU cores"]  # type: ignore[index]
    assert low < high
    assert high == pytest.approx(6 * 1000 * 6 * 2 * 16 / 2e10)
    route, evaluate = {"route": {}}, {"evaluate": {}}
    stages = [*recipe_dict(tmp_path, tmp_path / "data")["stages"][:2], route, evaluate]
    assert stage_seconds(recipe_of(tmp_path, stages=stages), 1000)["evaluate"] is None


@pytest.mark.parametrize("kind", ["ngrams", "encoder", "probe"])
def test_a_router_takes_at_most(tmp_path: Path, kind: str) -> None:
    stages = recipe_dict(tmp_path, tmp_path / "data")["stages"]
    stages[2] = {"route": {"kind": kind}}
    for low, high in stage_seconds(recipe_of(tmp_path, stages=stages), 10**9)["route"].values():  # type: ignore[union-attr]
        assert low == 0
        assert high > 0


def test_net_bytes_with_memories() -> None:
    net = net_of(1000, 700, 40, 6)
    assert (net.total, net.saved, net.break_even) == (940, 60, 7)
    assert net_of(1000, 700, 0, 0).break_even is None


def test_a_plan_has_both() -> None:
    plan = plan_of(load_recipe("quickstart"))
    assert plan.net.total == plan.backbone_bytes + 6 * plan.memory_bytes
    sums = [sum(plan.stage_seconds[name]["2 CPU cores"]) for name in ("learn_masks", "recover")]  # type: ignore[index]
    assert sum(sums) == pytest.approx(sum(plan.seconds["2 CPU cores"]))
    assert plan.to_json()["net"]["memories"] == 6


def test_a_choice_of_neurons_that_is_learned_reads_every_domain_alike(tmp_path: Path) -> None:
    stages: list[dict[str, Any]] = [
        {"select_masks": {"selector": "magnitude"}},
        {"restore": {"score": "learned", "steps": 5, "batch_size": 3}},
        {"evaluate": {}},
    ]
    changes = {
        "memory": {"lora": None, "kv": None, "neurons": {"count": 2}},
        "train": {"gradient_accumulation": 2},
        "distill": {"top_k": 50, "domain_weights": {"north": 3.0}},
    }
    recipe = recipe_of(tmp_path, stages=stages, **changes)
    assert training_tokens(recipe) == {"restore": 2 * 5 * 3 * 16}
    assert asked_tokens(recipe) == {"north": 5 * 3 * 16, "south": 5 * 3 * 16, "retention": 0}
    low, high = stage_seconds(recipe, 1000)["restore"]["2 CPU cores"]  # type: ignore[index]
    assert low < high == pytest.approx(6 * 1000 * 2 * 5 * 3 * 16 / 2e10)
    stages[1]["restore"] = {"batch_size": 3}
    once = recipe_of(tmp_path, stages=stages, **changes)
    assert training_tokens(once) == {} and stage_seconds(once, 1000)["restore"] is None
