"""Deterministic gates: `mask.gates: top_k`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from koffkit.exporters import export

from koffkit.errors import UsageError
from koffkit.method.projection import project
from koffkit.model.top_k_gates import TopKGates
from koffkit.recipe.load import load_recipe
from koffkit.stages.engine import run_recipe

from ...common import make_checkpoint, recipe_dict, write_recipe
from .test_loop import loop_for

MASK = {
    "structures": ["mlp_neuron", "kv_group"],
    "global_sparsity": 0.4,
    "multiple_of": 4,
    "gates": "top_k",
    "init": "activation",
    "init_batches": 1,
}
IDS = (torch.arange(24).reshape(2, 12) * 7919) % 280 + 5


@pytest.mark.parametrize("layout", ["uniform", "ragged"])
def test_every_step_has_exactly_the_mask_that_would_be_kept(llama: Path, tmp_path: Path, layout: str) -> None:
    loop = loop_for(llama, tmp_path, mask=MASK | {"layout": layout})
    gates, budget = loop.student.gates, loop.context.budget
    assert isinstance(gates, TopKGates)
    with torch.no_grad():
        for alpha in gates.log_alpha.values():
            alpha.normal_()
        for scale in gates.scale.values():
            scale.uniform_(0.5, 1.5)
    values = gates.sample(torch.Generator())
    expected = project(gates.scores(), budget, gates.heads)
    for name, value in values.items():
        assert torch.equal(value.detach(), expected[name] * gates.scale[name].detach())
    figures = loop._step(0)
    assert figures["penalty"] == 0
    removed = budget.removed_by({name: mask.sum(1).tolist() for name, mask in expected.items()})
    before = removed / budget.base_params
    assert figures["expected_sparsity"] == pytest.approx(before, abs=budget.step_params / budget.base_params)
    assert figures["expected_sparsity"] >= budget.target_params / budget.base_params


def test_scores_of_shut_gates_learn_and_their_scales_do_not(llama: Path, tmp_path: Path) -> None:
    loop = loop_for(llama, tmp_path, mask=MASK)
    gates = loop.student.gates
    values = gates.sample(torch.Generator())
    (values["mlp_neuron"] * torch.arange(48.0)).sum().backward()
    shut = values["mlp_neuron"].detach() == 0
    assert shut.any()
    slope = torch.arange(48.0).expand(3, 48)
    assert torch.equal(gates.log_alpha["mlp_neuron"].grad, slope)
    assert torch.equal(gates.scale["mlp_neuron"].grad, torch.where(shut, 0.0, slope))


def test_scales_have_a_rate_of_their_own_and_gradients_are_clipped(llama: Path, tmp_path: Path) -> None:
    stages = [
        {"learn_masks": {"max_steps": 10, "lr": {"gates": 0.1, "scales": 0.02, "lora": 1e-3, "kv": 1e-3}}}
    ]
    loop = loop_for(llama, tmp_path, mask=MASK, stages=stages, train={"max_gradient_norm": 1e-3})
    seen: list[float] = []
    step = loop.optimizer.step

    def watched() -> None:
        gradients = [p.grad for group in loop.groups.values() for p in group["params"] if p.grad is not None]
        seen.append(torch.stack([gradient.norm() for gradient in gradients]).norm().item())
        step()

    loop.optimizer.step = watched
    figures = loop._step(0)
    assert figures["lr_scales"] == 0.02
    assert figures["gradient_norm"] > 1e-3
    assert seen[0] == pytest.approx(1e-3, rel=1e-3)
    moved = (loop.student.gates.scale["mlp_neuron"] - 1).abs().max().item()
    assert moved == pytest.approx(0.02, rel=0.05)


@pytest.mark.parametrize("structures", [["mlp_neuron", "kv_group"], ["qk_pair", "v_channel", "mlp_neuron"]])
def test_folded_scales_compute_the_same_with_every_memory(
    llama: Path, tmp_path: Path, structures: list[str]
) -> None:
    lora = {"rank": 4, "alpha": 4, "targets": ["q_proj", "o_proj", "v_proj", "up_proj", "down_proj"]}
    memory = {"layers": "all", "lora": lora, "kv": {"tokens": 3}}
    loop = loop_for(llama, tmp_path, mask=MASK | {"structures": structures}, memory=memory)
    context, student = loop.context, loop.student
    context.run.path.mkdir(exist_ok=True)
    with torch.no_grad():
        for tensor in student.memories.tensors().values():
            tensor.normal_(0, 0.3)
        for scale in student.gates.scale.values():
            scale.uniform_(0.5, 1.5)
        values = student.gates.fixed(context.budget)
        before = [student(IDS, values, memory) for memory in (None, "north", "south")]
        teacher = context.unpruned(IDS)
        context.set_masks()
        after = [student(IDS, context.masks, memory) for memory in (None, "north", "south")]
        assert torch.equal(context.unpruned(IDS), teacher)
    for one, other in zip(before, after, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    assert all(bool((scale == 1).all()) for scale in student.gates.scale.values())


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_a_run_with_deterministic_gates_exports_as_it_was_learned(tmp_path: Path, family: str) -> None:
    base = make_checkpoint(tmp_path / "base", family)
    recipe = recipe_dict(base, tmp_path / "data", mask=MASK)
    recipe["stages"][0]["learn_masks"]["lr"]["scales"] = 0.1
    state = run_recipe(load_recipe(write_recipe(tmp_path / "recipe.yaml", recipe)), tmp_path / "run")
    assert state.repair.kind == "scales"
    assert state.results["gates"]["expected_sparsity"] == pytest.approx(state.results["gates"]["target"])
    export(tmp_path / "run", tmp_path / "out")
    manifest = json.loads((tmp_path / "out" / "koffkit.json").read_text())
    assert manifest["removed"]["parameters"] == state.budget.removed_params


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"structures": "paper"}, "top_k needs one gate for each unit"),
        ({"repair": "bias"}, "would undo the scales"),
    ],
)
def test_what_does_not_go_together(
    llama: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    recipe = recipe_dict(llama, tmp_path / "data", mask=MASK | changes)
    with pytest.raises(UsageError, match=message):
        load_recipe(write_recipe(tmp_path / "recipe.yaml", recipe))
