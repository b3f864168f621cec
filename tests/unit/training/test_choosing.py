"""The learned choice of the neurons of a memory, also where the best choice is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from koffkit.checkpoint.spec import ModelSpec
from koffkit.errors import IntegrityError, Interrupted
from koffkit.masks.convert import as_gates
from koffkit.method.restoring import chosen_table
from koffkit.progress import Silent
from koffkit.recipe.load import load_recipe
from koffkit.run.folder import RunFolder
from koffkit.training.build import build_context
from koffkit.training.choosing import Learning, learned_scores
from koffkit.training.context import Context
from koffkit.training.restoring import choose_by_domain

from ...common import recipe_dict, write_recipe

COUNT = 6


def make_context(base: Path, root: Path, lora: bool = False, count: int = COUNT // 3) -> Context:
    tree = recipe_dict(base, root / "data")
    memory = {"kv": None, "neurons": {"count": count, "layout": "ragged"}}
    tree["memory"] |= memory if lora else memory | {"lora": None}
    tree["mask"] |= {"global_sparsity": 0.2}
    tree["stages"].insert(1, {"restore": {}})
    tree["distill"] |= {"loss": "full"}
    loaded = load_recipe(write_recipe(root / "r.yaml", tree))
    run = RunFolder(root / "run")
    run.path.mkdir()
    context = build_context(loaded, run, ModelSpec.open(base), Silent())
    context.masks = {name: gate.clone() for name, gate in as_gates(context.set_masks()).items()}
    return context


@pytest.fixture
def context(llama: Path, tmp_path: Path) -> Context:
    return make_context(llama, tmp_path)


def removed_of(context: Context) -> torch.Tensor:
    assert context.masks is not None
    return context.masks["mlp_neuron"] == 0


def first_scores(context: Context) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = removed_of(context).shape
    return {name: torch.rand(shape, generator=generator) for name in context.corpus.domains}


def only_these_are_missed(context: Context) -> tuple[set[int], set[int]]:
    """Let five removed neurons of the last layer be the only ones that do anything, all at the same tokens:
    three that add up, and a pair, larger than they, that cancels itself out."""
    removed, layers = removed_of(context), context.student.model.model.layers
    places = removed[-1].nonzero().flatten()
    with torch.no_grad():
        for gone, layer in zip(removed, layers, strict=True):
            layer.mlp.down_proj.weight[:, gone] = 0
        mlp = layers[-1].mlp
        for module in (mlp.gate_proj, mlp.up_proj):
            module.weight[places] = module.weight[places[0]].clone()
        columns = torch.randn(len(mlp.down_proj.weight), 2, generator=torch.Generator().manual_seed(1))
        mlp.down_proj.weight[:, places[:3]] = columns[:, :1]
        mlp.down_proj.weight[:, places[3]] = 1.5 * columns[:, 1]
        mlp.down_proj.weight[:, places[4]] = -1.5 * columns[:, 1]
    return set(places[:3].tolist()), set(places[3:5].tolist())


def test_the_choice_that_scores_of_single_neurons_miss_is_found(llama: Path, tmp_path: Path) -> None:
    """Without either of the pair the unpruned model computes something else, without both it does not."""
    context = make_context(llama, tmp_path, count=1)
    last, (needed, pair) = context.student.spec.num_layers - 1, only_these_are_missed(context)
    for places in choose_by_domain(context, "sensitivity", 1.0, 4, 2).values():
        assert places.keys() == {last} and pair < set(places[last].tolist())
    for places in choose_by_domain(context, "learned", 1.0, 4, 2, Learning(8, 4.0, 1.0, 4, 2)).values():
        assert places.keys() == {last} and set(places[last].tolist()) == needed


@pytest.mark.parametrize("layout", ["uniform", "ragged"])
def test_without_a_way_to_go_it_is_the_first_choice_and_exact(context: Context, layout: str) -> None:
    scores, removed = first_scores(context), removed_of(context)
    still = learned_scores(context, scores, COUNT, layout, Learning(2, 1e-12, 1.0, 0, 2))
    moved = learned_scores(context, scores, COUNT, layout, Learning(2, 1.0, 1.0, 0, 2))
    for domain, own in scores.items():
        first = chosen_table(own, removed, COUNT, layout)
        assert chosen_table(still[domain], removed, COUNT, layout).equal(first)
        last = chosen_table(moved[domain], removed, COUNT, layout)
        assert not last.equal(first)
        assert int(last.sum()) == COUNT and not bool((last & ~removed).any())
        if layout == "uniform":
            assert last.sum(1).tolist() == [COUNT // 3] * 3


def test_neurons_that_are_not_chosen_learn_and_those_that_stay_do_not(context: Context) -> None:
    scores, removed = first_scores(context), removed_of(context)
    chosen = chosen_table(scores["north"], removed, COUNT, "ragged")
    moved = learned_scores(context, scores, COUNT, "ragged", Learning(1, 1.0, 1.0, 0, 2))["north"]
    change = moved - scores["north"]
    assert bool((change[removed & ~chosen] != 0).all()) and bool((change[chosen] != 0).all())
    assert bool((change[~removed] == 0).all())


def test_a_step_goes_down_the_slope_of_the_loss_by_the_gate(context: Context) -> None:
    """Against the definition, in float64: gates of one at what stays and at what is chosen."""
    scores, removed, student = first_scores(context), removed_of(context), context.student
    assert context.masks is not None
    chosen = chosen_table(scores["north"], removed, COUNT, "ragged")
    moved = learned_scores(context, scores, COUNT, "ragged", Learning(1, 0.5, 1.0, 3, 2))["north"]
    recipe = context.loaded.recipe
    ids = context.corpus.train["north"].batch(3, 2, recipe.sequence_length, recipe.seed).ids
    student.double()
    gates = (context.masks["mlp_neuron"] + chosen).double().requires_grad_()
    logits = [student(ids, table) @ student.head.T for table in (None, {"mlp_neuron": gates})]
    teacher, own = (values.log_softmax(-1) for values in logits)
    kl = (teacher.detach().exp() * (teacher.detach() - own)).sum(-1).mean()
    (slope,) = torch.autograd.grad(kl, gates)
    down = -slope[removed] / slope[removed].square().mean().sqrt()
    change = (moved - scores["north"])[removed].double() / scores["north"][removed].std(correction=0)
    assert torch.allclose(change, 0.5 * down, rtol=1e-3, atol=1e-3)


def test_the_same_seed_learns_the_same(llama: Path, tmp_path: Path) -> None:
    found = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        context = make_context(llama, tmp_path / name)
        found.append(choose_by_domain(context, "learned", 0.5, 2, 2, Learning(3, 1.0, 1.0, 2, 2)))
    assert found[0].keys() == found[1].keys()
    for domain, places in found[0].items():
        assert places.keys() == found[1][domain].keys()
        assert all(own.equal(found[1][domain][layer]) for layer, own in places.items())


def test_a_memory_that_is_there_is_attached_and_does_not_train(llama: Path, tmp_path: Path) -> None:
    context = make_context(llama, tmp_path, lora=True)
    scores, memories = first_scores(context), context.student.memories
    assert memories is not None
    learning = Learning(1, 1.0, 1.0, 0, 2)
    before = learned_scores(context, scores, COUNT, "ragged", learning)
    assert all(parameter.grad is None for parameter in context.student.parameters())
    with torch.no_grad():
        for name, parameter in memories._named_lora():
            if memories.slot("north") in name:
                parameter.fill_(0.05)
    after = learned_scores(context, scores, COUNT, "ragged", learning)
    assert not after["north"].equal(before["north"])
    assert after["south"].equal(before["south"])


def test_it_stops_when_it_is_asked_to(context: Context) -> None:
    asked: list[Any] = []
    context.stop = lambda: len(asked) == 3 or asked.append(None) is not None
    with pytest.raises(Interrupted, match="interrupted in restore: learned choice; continue with the same"):
        learned_scores(context, first_scores(context), COUNT, "ragged", Learning(8, 1.0, 1.0, 0, 2))
    assert len(asked) == 3


def test_a_loss_that_is_no_number_is_refused(context: Context) -> None:
    with torch.no_grad():
        context.student.model.model.layers[-1].mlp.up_proj.weight[0] = torch.inf
    with pytest.raises(
        IntegrityError, match=r"restore: the loss on text of north is nan.*score to sensitivity"
    ):
        learned_scores(context, first_scores(context), COUNT, "ragged", Learning(1, 1.0, 1.0, 0, 2))
