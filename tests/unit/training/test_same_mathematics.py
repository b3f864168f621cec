"""What is computed depends neither on switches that trade time for memory nor on dropout in a config."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.modeling_layers import GradientCheckpointingLayer

from koffkit.checkpoint.spec import ModelSpec
from koffkit.errors import IntegrityError, UsageError
from koffkit.progress import Silent
from koffkit.recipe.load import load_recipe
from koffkit.run.folder import RunFolder
from koffkit.stages.evaluate import evaluate_domains
from koffkit.training.build import build_context
from koffkit.training.context import Context
from koffkit.training.loop import DistillationLoop
from koffkit.training.saliency import warm_start

from ...common import make_checkpoint, recipe_dict, stage_options, write_recipe


def context_for(base: Path, root: Path, /, backbone: Path | None = None, **changes: Any) -> Context:
    loaded = load_recipe(write_recipe(root / "recipe.yaml", recipe_dict(base, root / "data", **changes)))
    return build_context(loaded, RunFolder(root / "run"), ModelSpec.open(base), Silent(), backbone)


def loop_of(context: Context) -> DistillationLoop:
    return DistillationLoop(context, "learn_masks", stage_options(context, "learn_masks"), train_gates=True)


@pytest.fixture(scope="module", params=["llama", "granite", "qwen3", "smollm3", "gemma3_text"])
def with_dropout(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base whose config asks for dropout, as Granite's do."""
    more = {"head_dim": 8} if request.param in ("qwen3", "gemma3_text") else {}
    folder = tmp_path_factory.mktemp(request.param)
    return make_checkpoint(folder, request.param, attention_dropout=0.5, num_hidden_layers=2, **more)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_dropout_is_off_for_teacher_and_student(
    with_dropout: Path, tmp_path: Path, checkpointing: bool
) -> None:
    context = context_for(with_dropout, tmp_path, train={"gradient_checkpointing": checkpointing})
    ids = torch.arange(16)[None] + 10
    assert context.unpruned(ids).equal(context.unpruned(ids))
    assert context.student(ids, None, "north").equal(context.student(ids, None, "north"))


def test_dropout_is_off_for_a_teacher_beside_a_backbone(with_dropout: Path, tmp_path: Path) -> None:
    context = context_for(with_dropout, tmp_path, with_dropout, train={"gradient_checkpointing": True})
    ids = torch.arange(16)[None] + 10
    assert context.teacher is not None
    assert context.unpruned(ids).equal(context.unpruned(ids))
    assert context.student(ids, None, "north").equal(context.student(ids, None, "north"))


def test_gradient_checkpointing_changes_memory_and_not_the_gradients(
    with_dropout: Path, tmp_path: Path
) -> None:
    gradients, runs = [], []
    for checkpointing in (False, True):
        root = tmp_path / str(checkpointing)
        root.mkdir()
        loop = loop_of(context_for(with_dropout, root, train={"gradient_checkpointing": checkpointing}))
        layer = next(m for m in loop.student.model.modules() if isinstance(m, GradientCheckpointingLayer))
        times: list[int] = []
        layer.self_attn.register_forward_hook(lambda *_, times=times: times.append(1))
        loss, _ = loop.distillation(loop.batch_of("north", 0), "north", loop._gate_values(0))
        loss.backward()
        runs.append(len(times))
        gradients.append({name: value.grad for name, value in loop.context.tensors().items()})
    assert runs == [2, 3]  # teacher and student; the student's layers once more in the backward pass
    for name, gradient in gradients[0].items():
        assert (gradient is None) == (gradients[1][name] is None)
        assert gradient is None or torch.allclose(gradient, gradients[1][name], atol=1e-7)


def test_evaluation_has_neither_dropout_nor_checkpointing(with_dropout: Path, tmp_path: Path) -> None:
    context = context_for(with_dropout, tmp_path, train={"gradient_checkpointing": True})
    context.student.model.train()  # whatever came before
    context.masks = context.student.gates.hard(context.budget)
    options = stage_options(context, "evaluate")
    first = evaluate_domains(context, options)
    assert first["domains"]["north"]["unpruned"]["kl"] == 0
    assert evaluate_domains(context, options) == first
    assert not any(module.training for module in context.student.model.modules())


def test_one_kv_head_has_no_deviation_in_a_warm_start(tmp_path: Path) -> None:
    base = make_checkpoint(tmp_path / "base", num_key_value_heads=1)
    mask = {"structures": ["mlp_neuron", "kv_group"], "global_sparsity": 0.1, "init": "activation"}
    context = context_for(base, tmp_path, mask=mask)
    before = context.student.gates.log_alpha["kv_group"].detach().clone()
    warm_start(context, stage_options(context, "learn_masks"))
    assert context.student.gates.log_alpha["kv_group"].equal(before)
    neurons = context.student.gates.log_alpha["mlp_neuron"]
    assert bool(neurons.isfinite().all())
    assert neurons.std().item() == pytest.approx(1.0, rel=0.02)


def test_a_base_with_nan_is_named_with_its_tensor(llama: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    for value in (float("nan"), float("inf")):
        base = make_checkpoint(tmp_path / str(value))
        tensors = load_file(base / "model.safetensors")
        tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = value
        save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(IntegrityError, match=r"model\.layers\.1\.mlp\.up_proj\.weight: the base itself"):
            context_for(base, tmp_path)


def test_training_in_float16_is_refused(llama: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"base\.dtype.*float16 is too narrow .* use bfloat16 or float32"):
        context_for(llama, tmp_path, base={"model": str(llama), "dtype": "float16"})


def test_a_base_saved_in_float16_trains_in_float32(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    base = make_checkpoint(tmp_path / "base")
    tensors = {name: value.half() for name, value in load_file(base / "model.safetensors").items()}
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    context = context_for(base, tmp_path)
    assert context.student.head.dtype == torch.float32
    assert loop_of(context)._step(0)["kl"] > 0


def test_a_run_whose_perplexity_is_beyond_a_float_ends_with_null(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    base = make_checkpoint(tmp_path / "base")
    tensors = load_file(base / "model.safetensors")
    tensors["lm_head.weight"] *= 1e4
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    context = context_for(base, tmp_path)
    context.masks = context.student.gates.hard(context.budget)
    results = evaluate_domains(context, stage_options(context, "evaluate"))
    assert results["domains"]["north"]["matched"]["perplexity"] is None
    assert results["mean"]["unpruned"]["perplexity"] is None
    assert results["mean"]["unpruned"]["kl"] == 0


def test_a_loss_that_is_nan_on_a_sound_base_is_put_down_to_the_rate(llama: Path, tmp_path: Path) -> None:
    loop = loop_of(context_for(llama, tmp_path))
    with torch.no_grad():
        next(loop.student.memories.lora_parameters()).fill_(float("nan"))
    with pytest.raises(IntegrityError, match=r"the loss is nan at step 1; .* Lower stages\.learn_masks\.lr"):
        loop._step(0)
