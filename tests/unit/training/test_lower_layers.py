"""Layers below every gate and memory are computed once for teacher and student, and nothing else changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from koffkit.model.lower_layers import LowerLayers
from koffkit.training.loop import DistillationLoop

from ...common import make_checkpoint, stage_options
from .test_same_mathematics import context_for

FAMILIES = {
    "llama": {},
    "granite": {},
    "gemma3_text": {"head_dim": 8, "sliding_window": 8},
    "qwen3": {"head_dim": 8},
}


@pytest.fixture(scope="module", params=FAMILIES)
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    return make_checkpoint(folder, request.param, num_hidden_layers=4, **FAMILIES[request.param])


def loop_of(
    base: Path, root: Path, *, train_gates: bool, checkpointing: bool = False, **changes: Any
) -> DistillationLoop:
    root.mkdir(exist_ok=True)
    changes = {"train": {"gradient_checkpointing": checkpointing}} | changes
    context = context_for(base, root, **changes)
    if not train_gates:
        assert context.student.gates is not None
        context.masks = context.student.gates.hard(context.budget)
    name = "learn_masks" if train_gates else "recover"
    return DistillationLoop(context, name, stage_options(context, name), train_gates=train_gates)


def upper(layer: int) -> dict[str, Any]:
    """Gates and memories from this layer on."""
    layers = list(range(layer, 4))
    mask = {"structures": ["mlp_neuron"], "global_sparsity": 0.05, "layout": "ragged", "layers": layers}
    memory = {
        "layers": layers,
        "lora": {"rank": 2, "alpha": 2, "targets": ["k_proj", "down_proj"]},
        "kv": {"tokens": 3},
    }
    return {"mask": mask, "memory": memory}


def one_step(loop: DistillationLoop) -> tuple[float, dict[str, Tensor], list[int]]:
    """Loss, gradients, and how often each layer's attention was computed."""
    calls = [0] * len(loop.student.decoder_layers)

    def count(index: int) -> Any:
        def hook(*_: Any) -> None:
            calls[index] += 1

        return hook

    handles = [
        layer.self_attn.register_forward_hook(count(i)) for i, layer in enumerate(loop.student.decoder_layers)
    ]
    loss, _ = loop.distillation(loop.batch_of("north", 0), "north", loop._gate_values(0))
    loss.backward()
    for handle in handles:
        handle.remove()
    gradients = {}
    for name, value in loop.context.tensors().items():
        if value.grad is not None:
            gradients[name], value.grad = value.grad, None
    return loss.item(), gradients, calls


@pytest.mark.parametrize("train_gates", [True, False])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_loss_is_the_same_to_the_last_bit(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, train_gates: bool, checkpointing: bool
) -> None:
    settings = {"train_gates": train_gates, "checkpointing": checkpointing}
    loop = loop_of(base, tmp_path / "shared", **settings, **upper(2))
    shared = one_step(loop)
    assert one_step(loop)[0] == shared[0]  # and nothing is left behind
    monkeypatch.setattr(type(loop.student), "lower_layers", lambda *_, **__: LowerLayers([]))
    twice = one_step(loop_of(base, tmp_path / "twice", **settings, **upper(2)))
    calls = 3 if checkpointing else 2
    assert (shared[2], twice[2]) == ([1, 1, calls, calls], [calls] * 4)
    assert shared[0] == twice[0] > 0 and shared[1].keys() == twice[1].keys()
    for name, gradient in twice[1].items():
        assert shared[1][name].equal(gradient), name
    assert any(bool(gradient.any()) for gradient in twice[1].values())


@pytest.mark.parametrize(
    ("changes", "shared"),
    [
        (upper(0), 0),
        (upper(3), 3),
        (upper(2) | {"memory": upper(1)["memory"]}, 1),
        (upper(1) | {"memory": {"lora": None, "kv": None}}, 1),
    ],
)
def test_what_is_shared_lies_below_all_that_differs(
    llama4: Path, tmp_path: Path, changes: dict[str, Any], shared: int
) -> None:
    loop = loop_of(llama4, tmp_path / "run", train_gates=True, **changes)
    assert one_step(loop)[2] == [1] * shared + [2] * (4 - shared)


@pytest.fixture(scope="module")
def llama4(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("llama4"), num_hidden_layers=4)


def test_masks_and_repairs_count_where_they_change_something(llama4: Path, tmp_path: Path) -> None:
    changes = upper(0) | {"memory": {"lora": None, "kv": None}}
    loop = loop_of(llama4, tmp_path / "run", train_gates=False, **changes)
    student, masks = loop.student, loop.context.masks
    assert masks is not None
    for layer in range(3):
        masks["mlp_neuron"][layer] = 1
    masks["mlp_neuron"][3, :2] = 0
    assert len(student.lower_layers(dict(masks), sampled=False)._layers) == 3
    assert len(student.lower_layers(None, sampled=False)._layers) == 4
    name = "model.layers.1.mlp.down_proj.weight"
    student.repair({name: torch.zeros_like(student.model.get_parameter(name))})
    assert len(student.lower_layers(dict(masks), sampled=False)._layers) == 1


def test_layers_whose_forward_was_replaced_keep_it() -> None:
    layers = torch.nn.ModuleList(torch.nn.Linear(2, 2) for _ in range(2))
    own = layers[0].forward = lambda x: x + 1
    lower = LowerLayers(layers)
    x = torch.ones(1, 2)
    with lower.recorded():
        expected = layers[1](layers[0](x))
    with lower.replayed():
        assert layers[1](layers[0](x)).equal(expected)
    assert layers[0].forward is own and "forward" not in vars(layers[1])
