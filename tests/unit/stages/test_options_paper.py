"""Options that the paper's setting needs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from koffkit.errors import UsageError
from koffkit.progress import Silent
from koffkit.recipe.load import load_recipe
from koffkit.stages.engine import run_recipe
from koffkit.training.sparsity import active_and_target, expected_local_sparsity

from ...common import recipe_dict, write_recipe
from ..training.test_loop import loop_for
from .test_options import MASK

RAGGED = MASK | {"layout": "ragged", "multiple_of": 1}


def test_layers_without_gates_stay_whole(llama: Path, tmp_path: Path) -> None:
    loop = loop_for(llama, tmp_path, mask=RAGGED | {"structures": "paper", "layers": [1]})
    gates = loop.student.gates
    sampled = gates.sample(torch.Generator().manual_seed(0))
    assert all(bool((values[[0, 2]] == 1).all()) for values in sampled.values())
    assert any(bool((values[1] < 1).any()) for values in sampled.values())
    assert all(bool((active[[0, 2]] == 1).all()) for active in gates.active_gates().values())
    before = {name: alpha.detach().clone() for name, alpha in gates.log_alpha.items()}
    loop._step(0)
    for name, alpha in gates.log_alpha.items():
        moved = (alpha.detach() != before[name]).any(1)
        assert moved.tolist() == [False, True, False], name
    hard = gates.hard(loop.context.budget)
    assert all(bool((mask[[0, 2]] == 1).all()) for mask in hard.values())
    assert all(bool((mask[1] == 0).any()) for mask in hard.values())


def test_a_run_with_gates_in_some_layers_meets_its_budget(llama: Path, tmp_path: Path) -> None:
    recipe = recipe_dict(llama, tmp_path / "data", mask=RAGGED | {"layers": {"upper": 2}})
    recipe["stages"] = recipe["stages"][:1]
    state = run_recipe(load_recipe(write_recipe(tmp_path / "recipe.yaml", recipe)), tmp_path / "run")
    budget = state.budget
    assert budget.layers == [1, 2]
    assert budget.target_params <= budget.removed_params < budget.target_params + budget.step_params


@pytest.mark.parametrize(
    ("mask", "text"),
    [
        ({"layers": {"upper": 2}}, "use layout: ragged, or layers: all"),
        (
            {"layout": "ragged", "layers": [3]},
            "mask.layers: .* does not fit a model of 3 layers; use layers 0",
        ),
        (
            {"layout": "ragged", "layers": [0], "global_sparsity": 0.4},
            "mlp_neuron'\\] in 1 layers and .* layers",
        ),
    ],
)
def test_layers_that_cannot_be(llama: Path, tmp_path: Path, mask: dict[str, Any], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        loop_for(llama, tmp_path, mask=MASK | mask)


def test_local_targets_are_one_for_every_kind_of_gate(llama: Path, tmp_path: Path) -> None:
    mask = RAGGED | {"structures": "paper", "local_sparsity": 0.15, "init": "cold", "layers": [0, 2]}
    loop = loop_for(llama, tmp_path, mask=mask)
    gates = loop.student.gates
    with torch.no_grad():
        gates.log_alpha["v_channel"][0] = -50.0
        gates.log_alpha["v_channel"][1] = -50.0  # has no gates: does not count
    active, target = active_and_target(gates, loop.context.budget, 0.15)
    assert target.tolist() == pytest.approx([0.85] * 5)
    by_gate = dict(zip(gates.log_alpha, active.tolist(), strict=True))
    assert by_gate.pop("v_channel") == pytest.approx(next(iter(by_gate.values())) / 2)
    assert expected_local_sparsity(gates) == pytest.approx(1 - active.mean().item())
    figures = loop._step(0)
    assert figures["local_sparsity"] == pytest.approx(expected_local_sparsity(gates))
    assert "local_sparsity" not in loop_for(llama, tmp_path)._step(0)


def test_the_masks_meet_the_global_budget_whatever_the_local_target(llama: Path, tmp_path: Path) -> None:
    mask = RAGGED | {"structures": "paper", "local_sparsity": 0.5}
    recipe = recipe_dict(llama, tmp_path / "data", mask=mask)
    recipe["stages"] = recipe["stages"][:1]
    state = run_recipe(load_recipe(write_recipe(tmp_path / "recipe.yaml", recipe)), tmp_path / "run")
    budget, gates = state.budget, state.results["gates"]
    assert budget.target_params <= budget.removed_params < budget.target_params + budget.step_params
    assert gates["local_target"] == 0.5
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert gates["local_sparsity"] == rows[-1]["local_sparsity"]


def test_retention_text_has_a_batch_size_of_its_own(llama: Path, tmp_path: Path) -> None:
    loop = loop_for(llama, tmp_path, distill={"top_k": 50, "retention_every": 3, "retention_batch_size": 5})
    assert len(loop._batch(2, 0, "north", True)[0]) == 5
    assert len(loop._batch(1, 0, "north", False)[0]) == 2
    assert loop._step(2)["tokens"] == 5 * 16


@pytest.mark.parametrize(("updates", "moved"), [("mask", {"gates"}), ("all", {"gates", "lora", "kv"})])
def test_what_retention_text_trains(llama: Path, tmp_path: Path, updates: str, moved: set[str]) -> None:
    distill = {"top_k": 50, "retention_every": 3, "retention_updates": updates}
    loop = loop_for(llama, tmp_path, distill=distill)
    before = {
        key: [value.detach().clone() for value in group["params"]] for key, group in loop.groups.items()
    }
    assert loop._step(2)["domain"] == "retention"
    found = {
        key
        for key, group in loop.groups.items()
        if any(not now.detach().equal(then) for now, then in zip(group["params"], before[key], strict=True))
    }
    assert found == moved


def test_the_rate_of_the_gates_depends_on_the_number_of_steps(llama: Path, tmp_path: Path) -> None:
    for steps, top in ((100, 0.16), (1000, 0.016), (10_000, 0.01)):
        schedule = loop_for(llama, tmp_path, stages=[{"learn_masks": {"max_steps": steps}}]).schedule
        half = steps // 2
        assert [schedule.gate_rate(step) for step in (0, half - 1, half)] == pytest.approx([top] * 3)
        assert schedule.gate_rate(steps - half // 2) == pytest.approx(top / 2)
        assert schedule.gate_rate(steps - 1) == pytest.approx(top / 10)
    given = loop_for(llama, tmp_path, stages=[{"learn_masks": {"max_steps": 100, "lr": {"gates": 0.3}}}])
    assert {given.schedule.gate_rate(step) for step in (0, 50, 99)} == {0.3}


def test_the_rate_of_lora_depends_on_the_steps_that_one_gets(llama: Path, tmp_path: Path) -> None:
    for steps, rate in ((2, 1e-3), (200, 1e-3), (800, 6e-4), (20_000, 1.2e-4), (10**6, 1e-4)):
        schedule = loop_for(llama, tmp_path, stages=[{"learn_masks": {"max_steps": steps}}]).schedule
        assert len(schedule.domains) == 2
        rates = [schedule.memory_rate(name) for name in ("lora", "neurons", "kv")]
        assert rates == pytest.approx([rate, 1e-4, 1e-2])
    loop = loop_for(llama, tmp_path, stages=[{"learn_masks": {"max_steps": 200, "lr": {"lora": 0.5}}}])
    loop._step(0)
    assert loop.optimizer is not None
    now = {group["name"]: group["lr"] for group in loop.optimizer.param_groups}
    assert (now["lora"], now["kv"]) == (0.5, 1e-2)


class Listening(Silent):
    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, text: str) -> None:
        self.warnings.append(text)


@pytest.mark.parametrize(("rate", "warned"), [(1e-6, 1), (None, 0)])
def test_gates_far_from_their_target_are_warned_of(
    llama: Path, tmp_path: Path, rate: float | None, warned: int
) -> None:
    """At the default rate sixty steps are enough."""
    options = {"max_steps": 60, "batch_size": 1} | ({} if rate is None else {"lr": {"gates": rate}})
    recipe = recipe_dict(
        llama, tmp_path / "data", stages=[{"learn_masks": options}], memory={"lora": None, "kv": None}
    )
    progress = Listening()
    loaded = load_recipe(write_recipe(tmp_path / "recipe.yaml", recipe))
    run_recipe(loaded, tmp_path / "run", progress=progress)
    said = [text for text in progress.warnings if "the gates missed their target" in text]
    assert len(said) == warned
    assert all("not 1" in text and "Give learn_masks more steps" in text for text in said)
