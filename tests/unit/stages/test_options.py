"""Every option of masks, memories and losses changes what a stage does."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from koffkit.method.controller import LagrangianController, PacedController, ProgressiveController
from koffkit.model.batch import Batch
from koffkit.planning.shares import Share
from koffkit.recipe.load import load_recipe
from koffkit.run.state import RunState
from koffkit.stages.engine import run_recipe
from koffkit.training.saliency import warm_start

from ...common import recipe_dict, sentences, write_recipe
from ..training.test_loop import loop_for

MASK = {"structures": ["mlp_neuron"], "global_sparsity": 0.12, "multiple_of": 4}


def loss_of(loop: Any, batch: Batch, domain: str) -> tuple[torch.Tensor, dict[str, float]]:
    """What one process computes of a whole batch."""
    loss, figures = loop._loss(batch, Share(0, slice(0, len(batch.ids)), len(batch.ids)), 0, domain)
    return loss, figures


def figures_of(loop: Any, batch: Batch, domain: str) -> dict[str, float]:
    return loss_of(loop, batch, domain)[1]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("hinge", PacedController),
        ("progressive", ProgressiveController),
        ("lagrangian", LagrangianController),
    ],
)
def test_controller(llama: Path, tmp_path: Path, kind: str, expected: type) -> None:
    loop = loop_for(
        llama,
        tmp_path,
        mask=MASK | {"controller": kind, "lambda_rate": 0.3, "lambda_init": 2.5, "reach_by": 1.0},
    )
    assert type(loop.controller) is expected
    if isinstance(loop.controller, LagrangianController):
        assert loop.controller.rate == 0.3 and loop.controller.warmup_steps == 6
    else:
        assert loop.controller.strength == 2.5


def test_temperature_falls_from_start_to_end(llama: Path, tmp_path: Path) -> None:
    loop = loop_for(llama, tmp_path, mask=MASK | {"temperature": {"start": 1.0, "end": 0.25}})
    seen = []
    for step in range(6):
        loop._step(step)
        seen.append(loop.student.gates.temperature)
    assert seen[0] == 1.0
    assert seen[-1] == pytest.approx(0.25)
    assert seen == sorted(seen, reverse=True)
    assert loop_for(llama, tmp_path, mask=MASK | {"temperature": 0.4}).schedule.temperature(3) == 0.4


@pytest.mark.parametrize("init", ["taylor", "activation"])
@pytest.mark.parametrize("layout", ["uniform", "ragged"])
def test_a_warm_start_ranks_units_by_what_the_model_needs(
    llama: Path, tmp_path: Path, init: str, layout: str
) -> None:
    mask = MASK | {
        "structures": "paper",
        "init": init,
        "init_std": 0.7,
        "init_batches": 2,
        "layout": layout,
    }
    loop = loop_for(llama, tmp_path, mask=mask)
    gates = loop.student.gates
    cold = {name: value.detach().clone() for name, value in gates.log_alpha.items()}
    with torch.no_grad():  # four neurons, and a value channel of a KV head, that do nothing
        layer = loop.student.model.model.layers[1]
        layer.mlp.down_proj.weight[:, :4] = layer.mlp.up_proj.weight[:4] = layer.mlp.gate_proj.weight[:4] = 0
        layer.self_attn.v_proj.base_layer.weight[5] = 0
    warm_start(loop.context, loop.options)
    over = -1 if layout == "uniform" else (0, 1)
    for name, value in gates.log_alpha.items():
        change = value.detach() - cold[name]
        torch.testing.assert_close(
            change.std(over), torch.full_like(change.std(over), 0.7), atol=1e-4, rtol=1e-4
        )
    for name in ("mlp_neuron@gate_proj", "mlp_neuron@up_proj"):
        assert set(gates.log_alpha[name][1].argsort()[:4].tolist()) == {0, 1, 2, 3}
    assert gates.log_alpha["v_channel"][1].argmin() == 5


def test_a_cold_start_leaves_gates_alike_and_more_batches_change_the_warm_one(
    llama: Path, tmp_path: Path
) -> None:
    found = []
    for changes in (
        {"init": "cold"},
        {"init": "taylor", "init_batches": 1},
        {"init": "taylor", "init_batches": 3},
    ):
        loop = loop_for(llama, tmp_path, mask=MASK | changes)
        warm_start(loop.context, loop.options)
        found.append(loop.student.gates.log_alpha["mlp_neuron"].detach().clone())
    assert len(found[0].unique()) == 1
    assert not torch.equal(found[1], found[2])


@pytest.mark.parametrize(
    ("distill", "terms"),
    [
        ({}, {"kl"}),
        ({"loss": "full"}, {"kl"}),
        ({"loss": "cross_entropy"}, {"ce"}),
        ({"loss": "blended", "blend": 0.25}, {"kl", "ce"}),
    ],
)
def test_loss(llama: Path, tmp_path: Path, distill: dict[str, Any], terms: set[str]) -> None:
    loop = loop_for(llama, tmp_path, distill={"top_k": 5, **distill})
    figures = loop._step(0)
    assert {name for name in ("kl", "ce") if name in figures} == terms
    expected = sum(figures[name] * weight for name, weight in loop.objective.weights.items())
    assert figures["loss"] == pytest.approx(expected, rel=1e-5)
    if distill.get("loss") == "blended":
        assert loop.objective.weights == {"kl": 0.75, "ce": 0.25}
    assert (figures["covered_mass"] < 0.999) == (distill.get("loss") not in ("full", "cross_entropy"))


def test_cross_entropy_is_that_of_the_next_token(llama: Path, tmp_path: Path) -> None:
    loop = loop_for(llama, tmp_path, distill={"loss": "cross_entropy"})
    batch = loop._batch(0, 0, "north", False)
    assert batch.loss_mask is None
    figures = figures_of(loop, batch, "north")
    with torch.no_grad():
        values = loop._gate_values(0)
        logits = loop.student(batch.ids, values, "north") @ loop.student.head.T
    expected = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), batch.ids[:, 1:].flatten())
    assert figures["ce"] == pytest.approx(expected.item(), rel=1e-5)


def test_domain_weights_set_how_often_a_domain_is_drawn(llama: Path, tmp_path: Path) -> None:
    loop = loop_for(llama, tmp_path, distill={"domain_weights": {"south": 4.0}}, retention=None)
    steps = [loop.schedule.step(step) for step in range(500)]
    assert 0.75 < Counter(domain for domain, _ in steps)["south"] / 500 < 0.85
    assert steps == [loop.schedule.step(step) for step in range(500)]
    assert loop.schedule.visit(7, False) == 7  # the next batch, however often the others were drawn


def test_without_joint_training_masks_are_learned_alone(llama: Path, tmp_path: Path) -> None:
    stages = [{"learn_masks": {"max_steps": 6, "joint": False}}, {"recover": {"max_steps": 2}}]
    loop = loop_for(llama, tmp_path, stages=stages)
    before = {name: value.detach().clone() for name, value in loop.context.tensors().items()}
    loop._step(0)
    moved = {
        name.partition(".")[0]
        for name, value in loop.context.tensors().items()
        if not value.detach().equal(before[name])
    }
    assert moved == {"gates"}
    recover = loop_for(llama, tmp_path, train_gates=False, stages=stages)
    assert set(recover.groups) == {"lora", "kv"} and recover.with_memory


def finished(llama: Path, root: Path, **changes: Any) -> RunState:
    recipe = recipe_dict(llama, root / "data", **changes)
    recipe["stages"] = [stage for stage in recipe["stages"] if "route" not in stage]
    return run_recipe(load_recipe(write_recipe(root / "recipe.yaml", recipe)), root / "run")


def test_a_ragged_run_meets_its_budget_and_its_layers_differ(llama: Path, tmp_path: Path) -> None:
    state = finished(
        llama, tmp_path, mask=MASK | {"layout": "ragged", "global_sparsity": 0.3, "multiple_of": 1}
    )
    budget = state.budget
    assert budget.target_params <= budget.removed_params < budget.target_params + budget.step_params
    masks = load_file(tmp_path / "run" / "masks.safetensors")
    assert len({int(mask.sum()) for mask in masks.values()}) > 1


def chat_base(llama: Path, root: Path) -> Path:
    """The tiny model with a chat template."""
    from transformers import AutoTokenizer

    base = Path(shutil.copytree(llama, root / "chat-base"))
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] }}:{{ m['content'] }}</s>{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    tokenizer.save_pretrained(base)
    return base


def chat_domains(root: Path, loss_on: str) -> dict[str, Any]:
    lines = sentences(5, 120)
    rows = [
        {"talk": [{"role": "user", "content": a}, {"role": "assistant", "content": b}]}
        for a, b in zip(lines[::2], lines[1::2], strict=True)
    ]
    (root / "chat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return {"talk": {"jsonl": str(root / "chat.jsonl"), "messages": "talk", "loss_on": loss_on}}


@pytest.mark.parametrize("loss", ["top_k", "cross_entropy"])
def test_the_loss_counts_the_assistants_tokens_only(llama: Path, tmp_path: Path, loss: str) -> None:
    base = chat_base(llama, tmp_path)
    loop = loop_for(
        base, tmp_path, domains=chat_domains(tmp_path, "assistant"), distill={"loss": loss, "top_k": 50}
    )
    batch = loop._batch(0, 0, "talk", False)
    ids, loss_mask = batch.ids, batch.loss_mask
    assert loss_mask is not None and 0 < loss_mask.float().mean() < 1
    found = figures_of(loop, batch, "talk")["loss"]
    assert found != pytest.approx(figures_of(loop, Batch(ids), "talk")["loss"], rel=1e-5)
    later = ids.clone()  # what stands last is not the assistant's: whatever it is, the loss stays
    row = int((~loss_mask[:, -1]).nonzero()[0]) if bool((~loss_mask[:, -1]).any()) else None
    if row is not None:
        later[row, -1] = (later[row, -1] + 7) % 280
        assert figures_of(loop, Batch(later, loss_mask), "talk")["loss"] == pytest.approx(found, rel=1e-5)
    one = torch.zeros_like(loss_mask)
    one[0, 5] = True
    with torch.no_grad():
        values = loop._gate_values(0)
        logits = loop.student(ids, values, "talk") @ loop.student.head.T
    if loss == "cross_entropy":
        expected = torch.nn.functional.cross_entropy(logits[0, 4:5], ids[0, 5:6])
        assert figures_of(loop, Batch(ids, one), "talk")["ce"] == pytest.approx(expected.item(), rel=1e-5)
    nothing, figures = loss_of(loop, Batch(ids, torch.zeros_like(loss_mask)), "talk")
    nothing.backward()
    assert figures["loss"] == 0.0 and figures["covered_mass"] == 1.0


@pytest.mark.parametrize("loss_on", ["all", "assistant"])
def test_a_run_on_conversations(llama: Path, tmp_path: Path, loss_on: str) -> None:
    base = chat_base(llama, tmp_path)
    domains = chat_domains(tmp_path, loss_on)
    recipe = recipe_dict(base, tmp_path / "data", domains=domains, retention=domains["talk"])
    state = run_recipe(load_recipe(write_recipe(tmp_path / "recipe.yaml", recipe)), tmp_path / "run")
    assert state.results["domains"]["talk"]["matched"]["kl"] > 0 and state.results["router"]["documents"] > 0
