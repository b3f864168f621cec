from __future__ import annotations

from pathlib import Path

import pytest
import torch

from koffkit.checkpoint.spec import ModelSpec
from koffkit.masks.convert import as_gates
from koffkit.progress import Silent
from koffkit.recipe.load import load_recipe
from koffkit.run.folder import RunFolder
from koffkit.training.build import build_context
from koffkit.training.context import Context
from koffkit.training.restoring import _sums_by_domain, choose_by_domain

from ...common import recipe_dict, write_recipe


@pytest.fixture
def context(llama: Path, tmp_path: Path) -> Context:
    tree = recipe_dict(llama, tmp_path / "data")
    tree["memory"] = {"layers": "all", "lora": None, "kv": None, "neurons": {"count": 2, "layout": "ragged"}}
    tree["mask"] |= {"layout": "ragged", "global_sparsity": 0.2}
    tree["stages"].insert(1, {"restore": {}})
    loaded = load_recipe(write_recipe(tmp_path / "r.yaml", tree))
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    context = build_context(loaded, run, ModelSpec.open(llama), Silent())
    context.masks = {name: gate.clone() for name, gate in as_gates(context.set_masks()).items()}
    return context


def test_sums_are_those_of_autograd_with_the_labels_that_were_drawn(context: Context) -> None:
    """One batch, computed again from the definition: gates of one at every neuron and every token."""
    student, recipe = context.student, context.loaded.recipe
    sums = _sums_by_domain(context, batches=1, batch_size=2)["north"]
    ids = context.corpus.train["north"].batch(0, 2, recipe.sequence_length, recipe.seed).ids
    activations: list[torch.Tensor] = []
    for layer in student.model.model.layers:
        layer.mlp.down_proj.register_forward_pre_hook(lambda _, inputs: activations.append(inputs[0]))
    student.model.get_input_embeddings().weight.requires_grad_(True)
    log_probabilities = torch.nn.functional.linear(student(ids), student.head).log_softmax(-1).flatten(0, 1)
    generator = torch.Generator().manual_seed((recipe.seed + 7919) * 1_000_003)
    labels = torch.multinomial(log_probabilities.detach().exp(), 1, generator=generator)
    likelihood = log_probabilities.gather(1, labels).sum()
    slopes = torch.autograd.grad(likelihood, activations)
    for layer, (activation, slope) in enumerate(zip(activations, slopes, strict=True)):
        a, d = activation.detach().flatten(0, 1), slope.flatten(0, 1)
        assert torch.allclose(sums.squares[layer], a.square().sum(0), rtol=1e-4)
        assert torch.allclose(sums.slopes[layer], d.square().sum(0), rtol=1e-3, atol=1e-7)
        assert torch.allclose(sums.products[layer], (a * d).square().sum(0), rtol=1e-3, atol=1e-7)
    assert sums.tokens == ids.numel()


def test_each_domain_gets_removed_neurons_of_its_own(context: Context) -> None:
    chosen = choose_by_domain(context, "sensitivity", 1.0, batches=2, batch_size=2)
    assert context.masks is not None
    removed = context.masks["mlp_neuron"] == 0
    for places in chosen.values():
        assert sum(map(len, places.values())) == 2 * len(removed)
        assert all(bool(removed[layer, own].all()) for layer, own in places.items())
    again = choose_by_domain(context, "sensitivity", 1.0, batches=2, batch_size=2)
    same = [chosen["north"][layer].equal(own) for layer, own in again["north"].items()]
    assert all(same)
    north, south = ({(i, j) for i, own in chosen[name].items() for j in own.tolist()} for name in chosen)
    assert north != south
