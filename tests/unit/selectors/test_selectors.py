"""What the selectors measure, each against the definition in its source."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from koffkit import plugins
from koffkit.checkpoint.spec import ModelSpec
from koffkit.errors import UsageError
from koffkit.method.likelihood import TokenSums, add_tokens, projected
from koffkit.method.projection import project
from koffkit.progress import Silent
from koffkit.recipe.load import load_recipe
from koffkit.run.folder import RunFolder
from koffkit.selectors import Calibration, Selector
from koffkit.selectors.depth import block_influence
from koffkit.training.build import build_context
from koffkit.training.calibration import calibration, calibration_batches
from koffkit.training.context import Context

from ...common import recipe_dict, write_recipe

NAMES = ["activation", "depth", "fisher", "flap", "magnitude", "sensitivity", "taylor"]
MASK = {
    "structures": ["mlp_neuron", "kv_group"],
    "global_sparsity": 0.2,
    "multiple_of": 4,
    "layout": "ragged",
}
BATCHES = 2


def named(name: str) -> Selector:
    return plugins.load(plugins.SELECTORS, name, "test")


def context_of(base: Path, root: Path, **mask: Any) -> Context:
    recipe = recipe_dict(base, root / "data", mask=MASK | mask, memory={"lora": None, "kv": None})
    loaded = load_recipe(write_recipe(root / "recipe.yaml", recipe))
    return build_context(loaded, RunFolder(root / "run"), ModelSpec.open(base), Silent())


def text_of(context: Context, batches: int = BATCHES) -> Calibration:
    sources = [*context.corpus.domains, None]
    return calibration(context, "test", calibration_batches(context, batches, 2, sources))


def shown(context: Context, module: str) -> Tensor:
    """The inputs of a module [N, C] for the same text."""
    seen: list[Tensor] = []
    handle = context.student.model.get_submodule(module).register_forward_hook(
        lambda module, inputs, output: seen.append(inputs[0].flatten(0, 1))
    )
    with torch.no_grad():
        for ids, *_ in text_of(context).batches():
            context.student(ids)
    handle.remove()
    return torch.cat(seen)


def test_all_are_installed() -> None:
    assert plugins.names(plugins.SELECTORS) == NAMES


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("structures", [["mlp_neuron", "kv_group"], "paper"])
def test_neurons_that_do_nothing_go_first(llama: Path, tmp_path: Path, name: str, structures: Any) -> None:
    context = context_of(llama, tmp_path, structures=structures)
    with torch.no_grad():
        mlp = context.student.model.model.layers[1].mlp
        mlp.down_proj.weight[:, 5:9] = mlp.up_proj.weight[5:9] = mlp.gate_proj.weight[5:9] = 0
    scores = named(name).scores(text_of(context), context.budget)
    assert scores.keys() == context.student.gates.log_alpha.keys()
    for gate, table in scores.items():
        assert table.shape == context.student.gates.log_alpha[gate].shape
        if gate.startswith("mlp_neuron"):
            assert set(table[1].argsort()[:4].tolist()) == {5, 6, 7, 8}


@pytest.mark.parametrize("name", NAMES)
def test_a_second_look_at_the_same_text_comes_to_the_same_bits(
    llama: Path, tmp_path: Path, name: str
) -> None:
    context = context_of(llama, tmp_path)
    first, second = (named(name).scores(text_of(context), context.budget) for _ in range(2))
    for gate, table in first.items():
        assert torch.equal(table, second[gate])


def test_activation_is_the_norm_of_inputs_times_that_of_the_columns_that_read_them(
    llama: Path, tmp_path: Path
) -> None:
    context = context_of(llama, tmp_path)
    inputs = shown(context, "model.layers.2.mlp.down_proj")
    weight = context.student.model.model.layers[2].mlp.down_proj.weight
    number = BATCHES * 3  # each has as many tokens: a mean of means
    expected = inputs.square().mean(0).mul(number).sqrt() * weight.norm(dim=0)
    torch.testing.assert_close(named("activation").saliency(text_of(context))["mlp_neuron"][2], expected)


def test_magnitude_is_the_norm_of_all_weights_of_a_unit(llama: Path, tmp_path: Path) -> None:
    context = context_of(llama, tmp_path)
    layer = context.student.model.model.layers[1]
    found = named("magnitude").saliency(text_of(context))
    neuron = [layer.mlp.gate_proj.weight[7], layer.mlp.up_proj.weight[7], layer.mlp.down_proj.weight[:, 7]]
    group = [layer.self_attn.q_proj.weight[:16], layer.self_attn.k_proj.weight[:8]]
    group += [layer.self_attn.v_proj.weight[:8], layer.self_attn.o_proj.weight[:, :16]]
    for gate, unit, parts in (("mlp_neuron", 7, neuron), ("kv_group", 0, group)):
        expected = torch.cat([part.flatten() for part in parts]).norm()
        torch.testing.assert_close(found[gate][1, unit], expected)


def test_flap_is_the_variance_of_inputs_times_the_squared_norm_of_the_columns(
    llama: Path, tmp_path: Path
) -> None:
    context = context_of(llama, tmp_path)
    inputs = shown(context, "model.layers.0.self_attn.o_proj")
    weight = context.student.model.model.layers[0].self_attn.o_proj.weight
    channels = inputs.var(0, correction=0) * weight.square().sum(0)
    text = text_of(context)
    torch.testing.assert_close(
        named("flap").saliency(text)["kv_group"][0], channels.view(2, 16).sum(1), rtol=1e-4, atol=1e-6
    )
    expected = ((channels - channels.mean()) / channels.std()).view(2, 16).mean(1)
    torch.testing.assert_close(
        named("flap").scores(text, context.budget)["kv_group"][0], expected, rtol=1e-4, atol=1e-4
    )


def test_taylor_is_weight_times_gradient_of_what_reads_a_unit(llama: Path, tmp_path: Path) -> None:
    context = context_of(llama, tmp_path)
    weight = context.student.model.model.layers[1].mlp.down_proj.weight
    expected = torch.zeros(weight.shape[1])
    for ids, *_ in text_of(context).batches():
        weight.requires_grad_()
        logits = context.student(ids)[:, :-1] @ context.student.head.T
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        (gradient,) = torch.autograd.grad(loss, weight)
        expected += (weight * gradient).sum(0).abs().detach()
        weight.requires_grad_(False)
    found = named("taylor").saliency(text_of(context))["mlp_neuron"][1]
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-6)


def cost_of(context: Context, gate: str, layer: int, unit: int, opening: float) -> float:
    """KL to the unpruned model in nats a token when one gate is `opening` instead of 1."""
    student, sums = context.student, TokenSums()
    values = {name: torch.ones_like(alpha) for name, alpha in student.gates.log_alpha.items()}
    values[gate][layer, unit] = opening
    with torch.no_grad():
        for ids, *_ in text_of(context).batches():
            whole, cut = (
                projected(student(ids, gates).flatten(0, 1), student.head) for gates in (None, values)
            )
            add_tokens(sums, ids.numel(), cut, reference=whole)
    return sums.mean_kl


def test_fisher_is_twice_the_kl_that_closing_a_gate_a_little_costs(llama: Path, tmp_path: Path) -> None:
    context = context_of(llama, tmp_path)
    found = named("fisher").saliency(text_of(context, 60))["mlp_neuron"][2]  # the last layer: no later token
    units = found.argsort(descending=True)[:12].tolist()
    step = 0.3
    costs = torch.tensor([cost_of(context, "mlp_neuron", 2, unit, 1 - step) for unit in units])
    ratio = found[units] * step**2 / 2 / costs
    assert 0.8 < ratio.mean() < 1.25 and ratio.std() < 0.35


def test_blocks_that_change_nothing_have_no_influence_and_go_first(llama: Path, tmp_path: Path) -> None:
    context = context_of(llama, tmp_path, global_sparsity=0.3, multiple_of=1)
    layer = context.student.model.model.layers[1]
    with torch.no_grad():
        layer.mlp.down_proj.weight *= 1e-3
        layer.self_attn.o_proj.weight *= 1e-3
    influence = block_influence(text_of(context))
    assert influence[1] < 1e-4 < 1e-2 < min(influence[0], influence[2])
    scores = named("depth").scores(text_of(context), context.budget)
    keep = project(scores, context.budget, context.student.gates.heads)
    counts = {name: mask.sum(1).tolist() for name, mask in keep.items()}
    assert counts["mlp_neuron"][1] == 1  # the last step stays
    assert counts["kv_group"][1] == 1
    partly = [count for count in counts["mlp_neuron"] if 1 < count < 48]
    assert len(partly) == 1  # the budget falls within one block
    gone = context.budget.removed_by(counts)
    assert 0 <= gone - context.budget.target_params < context.budget.step_params


def test_depth_says_that_attention_stays_and_refuses_equal_layers(llama: Path, tmp_path: Path) -> None:
    context = context_of(llama, tmp_path, structures=["mlp_neuron"])
    warnings: list[str] = []
    text = calibration(context, "test", calibration_batches(context, 1, 2, context.corpus.domains))
    object.__setattr__(text, "warn", warnings.append)
    named("depth").scores(text, context.budget)
    assert len(warnings) == 1 and "keep their attention" in warnings[0]
    uniform = context.loaded.recipe.mask.model_copy(update={"layout": "uniform"})
    with pytest.raises(UsageError, match=r"depth removes whole blocks.*set mask.layout to ragged"):
        named("depth").check(uniform)


def test_gradients_per_parameter_make_groups_and_neurons_comparable(llama: Path, tmp_path: Path) -> None:
    context = context_of(llama, tmp_path)
    text, budget = text_of(context), context.budget
    saliency, scores = named("taylor").saliency(text), named("taylor").scores(text, budget)
    for gate, table in scores.items():
        torch.testing.assert_close(table * budget.params_per_unit[gate], saliency[gate])
