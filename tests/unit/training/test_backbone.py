"""Stage `recover` may also train what the backbone keeps, which all memories share."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from koffkit.exporters import export
from safetensors.torch import load_file

from koffkit.checkpoint.spec import ModelSpec
from koffkit.errors import Interrupted, UsageError
from koffkit.memories.recipe import _training
from koffkit.recipe.load import LoadedRecipe, load_recipe
from koffkit.stages.engine import run_recipe
from koffkit.studies.changes import Setting, no_memory, one_shot, restored_neurons, unpruned_lora
from koffkit.training import backbone
from koffkit.training.loop import DistillationLoop

from ...common import recipe_dict, write_recipe
from ...integration.test_whole_method import StopAt
from .test_repair import IDS, random_masks

RATES = {"lora": 2e-2, "kv": 5e-2, "neurons": 1e-2, "backbone": 1e-2}
MASK = {"structures": ["mlp_neuron", "kv_group"], "global_sparsity": 0.4, "multiple_of": 4, "init": "cold"}


def loaded_for(base: Path, root: Path, *, repair: str = "none", **changes: Any) -> LoadedRecipe:
    recipe = recipe_dict(
        base, root / "data", mask=MASK | {"repair": repair, "repair_damping": 1.0}, **changes
    )
    recipe["stages"] = [
        {"select_masks": {"selector": "flap", "batches": 1}},
        {"recover": {"max_steps": 6, "batch_size": 2, "lr": RATES}},
        {"evaluate": {"batch_size": 4, "max_tokens": 64}},
    ]
    if recipe["memory"].get("neurons"):
        recipe["stages"].insert(1, {"restore": {"batches": 1}})
    return load_recipe(write_recipe(root / "recipe.yaml", recipe))


def loop_for(base: Path, root: Path, **changes: Any) -> DistillationLoop:
    loaded = loaded_for(base, root, **changes)
    context = random_masks(base, root, loaded)
    context.set_masks()
    backbone.begin(context)
    options = next(stage.options for stage in loaded.recipe.stages if stage.name == "recover")
    return DistillationLoop(context, "recover", options, train_gates=False)


@pytest.mark.parametrize("repair", ["none", "least_squares"])
def test_the_backbone_learns_and_the_teacher_stays(llama: Path, tmp_path: Path, repair: str) -> None:
    loop = loop_for(llama, tmp_path, repair=repair)
    context = loop.context
    before = {name: value.detach().clone() for name, value in context.backbone.items()}
    assert {name.rpartition(".layers.")[2].partition(".")[2] for name in before} == {
        "mlp.down_proj.weight",
        "self_attn.o_proj.weight",
    }
    with torch.no_grad():
        teacher, bare = context.unpruned(IDS), context.student(IDS, context.masks)
        domain = context.student(IDS, context.masks, "north")
    for step in range(2):  # the third is a retention step
        assert loop._step(step)["domain"] != "retention"
    moved = {name for name, value in context.backbone.items() if not torch.equal(value, before[name])}
    assert moved == set(before)
    with torch.no_grad():
        assert torch.equal(context.unpruned(IDS), teacher)
        assert not torch.equal(context.student(IDS, context.masks), bare)
        assert not torch.equal(context.student(IDS, context.masks, "north"), domain)


def test_what_was_removed_does_not_move(llama: Path, tmp_path: Path) -> None:
    loop = loop_for(llama, tmp_path)
    context, name = loop.context, "model.layers.1.mlp.down_proj.weight"
    before = context.backbone[name].detach().clone()
    loop._step(0)
    assert context.masks is not None
    kept = context.masks["mlp_neuron"][1].bool()
    assert 0 < kept.sum() < len(kept)
    assert torch.equal(context.backbone[name][:, ~kept], before[:, ~kept])
    assert (context.backbone[name][:, kept] != before[:, kept]).any(0).all()


def test_retention_text_trains_the_backbone_and_no_memory(llama: Path, tmp_path: Path) -> None:
    loop = loop_for(llama, tmp_path)
    before = {name: value.detach().clone() for name, value in loop.context.tensors().items()}
    assert loop._step(2)["domain"] == "retention"
    moved = {
        name.partition(".")[0]
        for name, value in loop.context.tensors().items()
        if not torch.equal(value, before[name])
    }
    assert moved == {"backbone"}


@pytest.mark.parametrize("repair", ["none", "least_squares"])
def test_a_run_exports_what_it_learned(llama: Path, tmp_path: Path, repair: str) -> None:
    neurons = {"count": 4, "layout": "uniform", "tuned": True}
    memory = {"layers": "all", "lora": None, "kv": None, "neurons": neurons}
    loaded = loaded_for(llama, tmp_path, repair=repair, memory=memory)
    state = run_recipe(loaded, tmp_path / "run")
    assert state.repair is not None
    assert state.repair.trained and state.repair.kind == ("trained" if repair == "none" else repair)
    assert "trained.safetensors" in state.files and "repair.safetensors" not in state.files
    assert not (tmp_path / "run" / "repair.safetensors").exists()
    export(tmp_path / "run", tmp_path / "out")  # the gate compares it with the masked model
    stored = load_file(tmp_path / "run" / "trained.safetensors")
    sliced = load_file(tmp_path / "out" / "backbone" / "model.safetensors")
    base = load_file(llama / "model.safetensors")
    masks = load_file(tmp_path / "run" / "masks.safetensors")
    name = "model.layers.1.mlp.down_proj.weight"
    (keep,) = (value for key, value in masks.items() if "1" in key and "mlp_neuron" in key)
    assert torch.equal(sliced[name], stored[name][:, keep.bool()])
    assert not torch.equal(sliced[name], base[name][:, keep.bool()])


@pytest.mark.parametrize("repair", ["none", "least_squares"])
def test_interrupted_and_resumed_comes_to_the_same_bits(llama: Path, tmp_path: Path, repair: str) -> None:
    loaded = loaded_for(llama, tmp_path, repair=repair)
    whole = run_recipe(loaded, tmp_path / "whole")
    for number, (stage, step) in enumerate((("recover", 1), ("recover", 5), ("evaluate", 1))):
        with pytest.raises(Interrupted, match=f"interrupted in {stage}"):
            run_recipe(loaded, tmp_path / "parts", resume=number > 0, progress=StopAt(stage, step))
        if stage == "recover":
            before = (tmp_path / "parts" / "run.json").read_bytes()
    assert (tmp_path / "parts" / "trained.safetensors").is_file()
    shutil.copytree(tmp_path / "parts", tmp_path / "killed")
    (tmp_path / "killed" / "run.json").write_bytes(before)  # killed when the new weights were just written
    for name in ("parts", "killed"):
        parts = run_recipe(loaded, tmp_path / name, resume=True)
        assert parts.results == whole.results
        for file in ("trained.safetensors", "memories/north/adapter_model.safetensors"):
            assert (tmp_path / name / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


def test_only_recover_trains_it(llama: Path, tmp_path: Path) -> None:
    stages = [{"learn_masks": {"max_steps": 2, "lr": RATES}}, {"evaluate": {}}]
    recipe = recipe_dict(llama, tmp_path / "data", stages=stages)
    with pytest.raises(UsageError, match=r"lr.backbone: 0.01 is for stage recover"):
        load_recipe(write_recipe(tmp_path / "recipe.yaml", recipe))


def test_who_has_a_finished_backbone_leaves_it_alone(llama: Path, tmp_path: Path) -> None:
    loaded = loaded_for(llama, tmp_path)
    assert _training(loaded.recipe.model_dump(mode="json"))["lr"]["backbone"] is None
    setting = Setting(loaded.recipe, ModelSpec.open(llama))

    def stages_after(change: Any) -> dict[str, Any]:
        tree = loaded.recipe.model_dump(mode="json", exclude_unset=True)
        change(tree, setting)
        return {name: options for stage in tree["stages"] for name, options in stage.items()}

    assert stages_after(unpruned_lora)["recover"]["lr"]["backbone"] is None
    assert stages_after(no_memory)["recover"]["lr"]["backbone"] == 1e-2  # nothing else is left to train
    assert stages_after(restored_neurons)["recover"]["lr"]["backbone"] == 1e-2
    assert "recover" not in stages_after(one_shot("magnitude", recovery=False))
    assert stages_after(one_shot("magnitude", recovery=True))["recover"]["lr"]["backbone"] == 1e-2
