"""What a run will cost, from a machine whose speed is known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from koffkit.checkpoint.spec import ModelSpec
from koffkit.planning.forecast import (
    cached_share,
    disk_bytes,
    forecast_of,
    keep_probe,
    known_probe,
)
from koffkit.planning.machine import Machine
from koffkit.planning.peak import held_by_heap
from koffkit.planning.plan import make_plan
from koffkit.planning.work import cache_bytes_a_token, step_work
from koffkit.recipe.schema import Recipe
from koffkit.recipe.training import Training

from ...common import recipe_dict

SLOW = Machine(operations={"float32": 1e6, "bfloat16": 1e6}, bytes=1e12, call=0.0, at_once=False)
TOKENS = {"north": 1000, "south": 1000, "retention": 1000}
CPU = {"kind": "cpu", "cores": 1}


@pytest.fixture
def recipe(llama: Path, tmp_path: Path) -> Recipe:
    return recipe_of(llama, tmp_path)


def recipe_of(llama: Path, root: Path, **changes: Any) -> Recipe:
    return Recipe.model_validate(recipe_dict(llama, root / "data") | changes)


def test_time_is_steps_times_the_time_of_one(llama: Path, recipe: Recipe) -> None:
    spec = ModelSpec.open(llama)
    plan = make_plan(recipe, spec)
    found = forecast_of(recipe, spec, plan, SLOW, TOKENS)
    one = SLOW.seconds(step_work(recipe, spec, recipe.stages[0].options, cached=False), "float32")
    assert found.seconds["learn_masks"] == pytest.approx(6 * one)
    assert found.seconds["recover"] == pytest.approx(4 * one)
    assert found.seconds["route"] is None
    assert found.seconds["evaluate"] > 0  # type: ignore[operator]
    assert found.peak_memory == plan.peak_memory_bytes + held_by_heap(recipe, spec) > plan.peak_memory_bytes
    on_gpu = forecast_of(recipe, spec, plan, replace(SLOW, at_once=True), TOKENS)
    assert on_gpu.peak_memory == plan.peak_memory_bytes
    unknown = forecast_of(recipe, spec, plan, SLOW, dict.fromkeys(TOKENS))
    assert unknown.seconds["evaluate"] is None
    assert unknown.seconds["recover"] == found.seconds["recover"]


def test_a_learned_choice_takes_its_steps_and_the_passes_for_the_first_scores(
    llama: Path, tmp_path: Path
) -> None:
    restore: dict[str, Any] = {"score": "learned", "steps": 5, "batches": 7, "batch_size": 2}
    stages: list[dict[str, Any]] = [{"select_masks": {"selector": "magnitude"}}, {"restore": restore}]
    memory = {"lora": None, "kv": None, "neurons": {"count": 2}}
    recipe, spec = recipe_of(llama, tmp_path, memory=memory, stages=stages), ModelSpec.open(llama)
    found = forecast_of(recipe, spec, make_plan(recipe, spec), SLOW, TOKENS)
    options = Training(max_steps=1, batch_size=2)
    new, read = (
        SLOW.seconds(step_work(recipe, spec, options, cached=way), "float32") for way in (False, True)
    )
    assert found.seconds["restore"] == pytest.approx(2 * (5 * new + 7 * read))
    accumulated = recipe_of(llama, tmp_path, memory=memory, stages=stages, train={"gradient_accumulation": 4})
    again = forecast_of(accumulated, spec, make_plan(accumulated, spec), SLOW, TOKENS)
    assert again.seconds["restore"] == found.seconds["restore"]


@pytest.mark.parametrize(
    ("steps", "known", "share", "after"),
    [
        (10, 0, 0.0, 320),  # 10 steps of 32 tokens, all new
        (300, 0, 1 - 3000 / 9600, 3000),  # 3.2 epochs
        (300, 3000, 1.0, 3000),  # a second stage
        (50, 1500, 0.5, 2300),  # half of what it meets is there
    ],
)
def test_a_cache_is_filled_once(
    llama: Path, tmp_path: Path, steps: int, known: float, share: float, after: float
) -> None:
    stages = [{"learn_masks": {"max_steps": steps, "batch_size": 2}}]
    recipe = recipe_of(llama, tmp_path, stages=stages, distill={"top_k": 50, "cache": True})
    found = cached_share(recipe, recipe.stages[0].options, TOKENS, known)
    assert found == (pytest.approx(share), pytest.approx(after))
    plain = recipe_of(llama, tmp_path, stages=stages)
    assert cached_share(plain, plain.stages[0].options, TOKENS, known) == (0.0, known)


def test_a_cache_makes_later_epochs_shorter(llama: Path, tmp_path: Path) -> None:
    spec, stages = ModelSpec.open(llama), [{"learn_masks": {"max_steps": 300, "batch_size": 2}}]
    cached, plain = (
        recipe_of(llama, tmp_path, stages=stages, distill={"top_k": 50, "cache": cache})
        for cache in (True, False)
    )
    took = [
        forecast_of(recipe, spec, make_plan(recipe, spec), SLOW, TOKENS).seconds["learn_masks"]
        for recipe in (cached, plain)
    ]
    assert 0.6 < took[0] / took[1] < 0.85  # type: ignore[operator]
    more = disk_bytes(cached, spec, make_plan(cached, spec), TOKENS)
    less = disk_bytes(plain, spec, make_plan(plain, spec), TOKENS)
    retention = 300 * 32 // 20  # less than there is; of the domains all
    assert more - less == cache_bytes_a_token(cached, spec) * (2000 + retention)


def test_what_real_steps_said_is_remembered_for_their_recipe(
    llama: Path, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KOFFKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    spec = ModelSpec.open(llama)
    found = forecast_of(recipe, spec, make_plan(recipe, spec), SLOW, TOKENS)
    assert known_probe(recipe, CPU) is None
    keep_probe(recipe, CPU, found)
    assert known_probe(recipe, CPU) == found
    assert known_probe(recipe, CPU | {"cores": 2}) is None
    assert known_probe(recipe.model_copy(update={"sequence_length": 8}), CPU) is None
    next((tmp_path / "cache" / "probes").iterdir()).write_text("{")
    assert known_probe(recipe, CPU) is None
