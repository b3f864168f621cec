"""What a step has to do, against counts by hand, and against torch's own counter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from koffkit.checkpoint.spec import ModelSpec
from koffkit.data.teacher_cache import record_type
from koffkit.planning.forecast import disk_bytes
from koffkit.planning.plan import make_plan
from koffkit.planning.work import (
    cache_bytes_a_token,
    lowest_changed_layer,
    step_operations,
    step_work,
    trained_backbone,
)
from koffkit.recipe.schema import Recipe

from ...common import make_checkpoint, recipe_dict
from ..training.test_teaching import cached


def recipe_of(base: Path, root: Path, **changes: Any) -> Recipe:
    return Recipe.model_validate(recipe_dict(base, root / "data") | changes)


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("deep"), num_hidden_layers=8)


UPPER = {
    "mask": {
        "structures": ["mlp_neuron"],
        "global_sparsity": 0.05,
        "layout": "ragged",
        "layers": [4, 5, 6, 7],
    },
    "memory": {"layers": [4, 5, 6, 7], "lora": {"rank": 2, "alpha": 2, "targets": ["k_proj"]}, "kv": None},
}


@pytest.mark.parametrize(
    ("changes", "known", "passes"), [({}, False, 24), ({}, True, 16), (UPPER, False, 16), (UPPER, True, 12)]
)
def test_operations_are_those_that_torch_counts(
    deep: Path, tmp_path: Path, changes: dict[str, Any], known: bool, passes: int
) -> None:
    loop = cached(deep, tmp_path, sequence_length=64, **changes)
    batch = loop.batch_of("north", 0)
    loop.context.taught(batch)
    if not known:
        loop.context.cache = None
    with FlopCounterMode(display=False) as counter:
        loop.distillation(batch, "north", loop._gate_values(0))[0].backward()
    work = step_work(loop.recipe, ModelSpec.open(deep), loop.options, cached=known)
    uncounted = 2 * 64 * 32 * passes  # attention, for a token: torch counts products of matrices alone
    if loop.recipe.memory.kv is not None:
        uncounted += 3 * 4 * 3 * 32 * 8
    expected = work.operations - batch.ids.numel() * uncounted
    assert expected == pytest.approx(counter.get_total_flops(), rel=0.03)


def test_layers_below_gates_and_memory_are_counted_once(llama: Path, tmp_path: Path) -> None:
    spec = ModelSpec.open(llama)
    assert lowest_changed_layer(recipe_of(llama, tmp_path), spec) == 0
    mask = {"structures": ["mlp_neuron"], "global_sparsity": 0.05, "layout": "ragged", "layers": [2]}
    memory = {"layers": [1, 2], "lora": None, "kv": {"tokens": 3}}
    assert lowest_changed_layer(recipe_of(llama, tmp_path, mask=mask, memory=memory), spec) == 1


def test_a_plan_states_the_cache_and_what_it_saves(llama: Path, tmp_path: Path) -> None:
    spec = ModelSpec.open(llama)
    without = make_plan(recipe_of(llama, tmp_path), spec)
    assert without.teacher_cache_bytes == 0
    assert all(set(one) == {"uncached"} for one in without.step_operations.values())
    recipe = recipe_of(llama, tmp_path, distill={"top_k": 50, "cache": True})
    plan = make_plan(recipe, spec)
    record = record_type(16, 50, spec.config["vocab_size"]).itemsize - 4  # a checksum for each sequence
    assert plan.teacher_cache_bytes == sum(plan.training_tokens.values()) * record // 16
    assert cache_bytes_a_token(recipe, spec) == 4 + 50 * 4
    for stage, operations in step_operations(recipe, spec).items():
        assert 0.5 < operations["cached"] / operations["uncached"] < 0.75
        assert operations["uncached"] == without.step_operations[stage]["uncached"]
    long = ModelSpec(config={**spec.config, "vocab_size": 100_000})
    assert cache_bytes_a_token(recipe, long) == 4 + 50 * 6


def test_checkpointing_and_accumulation_are_counted(llama: Path, tmp_path: Path) -> None:
    spec = ModelSpec.open(llama)
    plain = recipe_of(llama, tmp_path)
    again = recipe_of(llama, tmp_path, train={"gradient_checkpointing": True})
    twice = recipe_of(llama, tmp_path, train={"gradient_accumulation": 2})
    options = plain.stages[0].options
    one, more, two = (step_work(recipe, spec, options, cached=False) for recipe in (plain, again, twice))
    assert more.operations > 1.15 * one.operations and more.calls > one.calls
    assert two == type(one)(operations=2 * one.operations, bytes=2 * one.bytes, calls=2 * one.calls)
    assert torch.tensor(one.bytes).isfinite()


def test_paged_memories_take_the_room_of_one(deep: Path, tmp_path: Path) -> None:
    spec, select = ModelSpec.open(deep), {"select_masks": {"selector": "magnitude"}}
    recover = {"recover": {"max_steps": 4, "batch_size": 2}}
    larger = {"select_masks": {"selector": "taylor", "batch_size": 64}}
    for stages, bytes_of_others in (([select, recover], 16), ([larger, recover], 12)):
        recipes = [
            recipe_of(deep, tmp_path, stages=stages, train={"page_memories": paged})
            for paged in (False, True)
        ]
        plans = [make_plan(recipe, spec) for recipe in recipes]
        memory, domains = plans[0].memory_params_training, len(recipes[0].domain_names)
        waiting = memory * (domains - 1 if bytes_of_others == 16 else domains)
        assert plans[0].peak_memory_bytes - plans[1].peak_memory_bytes == bytes_of_others * waiting > 0


def test_a_backbone_that_trains_costs_its_gradients_and_its_copies(deep: Path, tmp_path: Path) -> None:
    def made(rate: float | None) -> Recipe:
        stages = [
            {"select_masks": {"selector": "magnitude"}},
            {"recover": {"max_steps": 4, "batch_size": 2, "lr": {"backbone": rate}}},
            {"evaluate": {}},
        ]
        return recipe_of(deep, tmp_path, stages=stages)

    spec, frozen, trained = ModelSpec.open(deep), made(None), made(1e-3)
    config = spec.config
    weights = 8 * config["hidden_size"] * config["intermediate_size"]  # down projections, of 8 layers
    assert (trained_backbone(frozen, spec), trained_backbone(trained, spec)) == (0, weights)
    plans = [make_plan(recipe, spec) for recipe in (frozen, trained)]
    assert plans[1].peak_memory_bytes - plans[0].peak_memory_bytes == 16 * weights
    before, after = (plan.step_operations["recover"]["uncached"] for plan in plans)
    assert after - before == 2 * weights * 2 * trained.sequence_length
    grown = [
        disk_bytes(recipe, spec, plan, {}) for recipe, plan in zip((frozen, trained), plans, strict=True)
    ]
    assert grown[1] - grown[0] == 4 * weights * 7  # trained weights, two checkpoints with two moments
