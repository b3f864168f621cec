from __future__ import annotations

import pytest
import torch

from koffkit.checkpoint.spec import ModelSpec
from koffkit.method.budget import plan_budget
from koffkit.method.projection import project, top_units

from .test_budget import LLAMA

SPEC = ModelSpec(config=LLAMA)
EVERYTHING = ["mlp_neuron", "qk_pair", "v_channel", "mlp_output"]


def test_top_units_keeps_the_count_and_breaks_ties_by_index() -> None:
    keep = top_units(torch.tensor([[0.0, 2.0, 1.0, 2.0], [1.0, 1.0, 1.0, 1.0]]), 2)
    assert keep.tolist() == [[False, True, False, True], [True, True, False, False]]


def scores_of(structures: list[str], seed: int) -> tuple[dict[str, torch.Tensor], dict[str, int]]:
    generator = torch.Generator().manual_seed(seed)
    units = {name: SPEC.arch.structures[name].num_units(SPEC.shape) for name in structures}
    scores = {
        name: torch.randn(3, size, generator=generator) + torch.randn(3, 1, generator=generator)
        for name, size in units.items()
    }
    return scores, {name: SPEC.arch.structures[name].heads(SPEC.shape) for name in structures}


@pytest.mark.parametrize(
    "structures", [["mlp_neuron"], ["mlp_neuron", "kv_group"], ["qk_pair", "v_channel"], EVERYTHING]
)
@pytest.mark.parametrize("layout", ["uniform", "ragged"])
@pytest.mark.parametrize("seed", range(4))
def test_the_mask_meets_the_budget_to_within_one_step(structures: list[str], layout: str, seed: int) -> None:
    budget = plan_budget(SPEC, structures, 0.15 if "mlp_neuron" in structures else 0.08, 8, layout)
    scores, heads = scores_of(structures, seed)
    masks = project(scores, budget, heads)
    kept = {name: mask.sum(-1).tolist() for name, mask in masks.items()}
    realised = budget.realised(kept)
    assert budget.target_params <= realised.removed_params < budget.target_params + budget.step_params
    for name, mask in masks.items():
        by_head = mask.view(3, heads[name], -1).sum(-1)
        assert bool((by_head == by_head[:, :1]).all()) and bool((by_head > 0).all())
    if "mlp_neuron" in structures:
        assert all(count % 8 == 0 for count in kept["mlp_neuron"])
    if layout == "uniform":
        assert all(len(set(counts)) == 1 for counts in kept.values())


def test_ragged_takes_the_lowest_scores_wherever_they_are() -> None:
    budget = plan_budget(SPEC, ["mlp_neuron"], 0.1, 1, "ragged")
    scores = torch.randn(3, 160, generator=torch.Generator().manual_seed(0))
    scores[1] -= 1.0
    mask = project({"mlp_neuron": scores}, budget, {"mlp_neuron": 1})["mlp_neuron"]
    assert scores[mask].min() >= scores[~mask].max()
    counts = mask.sum(-1)
    assert counts[1] < min(counts[0], counts[2])


def test_no_layer_loses_its_last_step() -> None:
    budget = plan_budget(SPEC, ["mlp_neuron"], 0.3, 8, "ragged")
    scores = torch.zeros(3, 160)
    scores[0] -= 100.0
    mask = project({"mlp_neuron": scores}, budget, {"mlp_neuron": 1})["mlp_neuron"]
    assert mask.sum(-1)[0] == 8


@pytest.mark.parametrize("seed", range(3))
def test_layers_without_gates_keep_everything_however_low_their_scores(seed: int) -> None:
    budget = plan_budget(SPEC, EVERYTHING, 0.05, 1, "ragged", layers=[1])
    scores, heads = scores_of(EVERYTHING, seed)
    for table in scores.values():
        table[[0, 2]] -= 100
    masks = project(scores, budget, heads)
    assert all(bool(mask[[0, 2]].all()) for mask in masks.values())
    removed = budget.removed_by({name: mask.sum(-1).tolist() for name, mask in masks.items()})
    assert budget.target_params <= removed < budget.target_params + budget.step_params
