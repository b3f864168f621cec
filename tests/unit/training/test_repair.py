from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from koffkit.exporters import export
from safetensors.torch import load_file

from koffkit.checkpoint.spec import ModelSpec
from koffkit.errors import DataError, IntegrityError, Interrupted, UsageError
from koffkit.masks.repair import Repair
from koffkit.progress import Silent
from koffkit.recipe.load import LoadedRecipe, load_recipe
from koffkit.run.folder import RunFolder
from koffkit.run.state import RunState
from koffkit.stages.engine import run_recipe
from koffkit.training.build import build_context
from koffkit.training.context import Context

from ...common import make_checkpoint, recipe_dict, write_recipe

MASK = {"structures": ["mlp_neuron", "kv_group"], "global_sparsity": 0.4, "multiple_of": 4, "init": "cold"}
KINDS = ["bias", "least_squares"]


def recipe_of(base: Path, root: Path, repair: str, **changes: Any) -> Path:
    mask = MASK | {"repair": repair, "repair_damping": 1.0} | changes.pop("mask", {})
    recipe = recipe_dict(base, root / "data", mask=mask, **changes)
    recipe["stages"] = [
        {"select_masks": {"selector": "flap", "batches": 1}},
        {"recover": {"max_steps": 2, "batch_size": 2}},
        {"evaluate": {"batch_size": 4, "max_tokens": 64}},
    ]
    return write_recipe(root / "recipe.yaml", recipe)


def context_of(base: Path, root: Path, repair: str, **changes: Any) -> Context:
    return random_masks(base, root, load_recipe(recipe_of(base, root, repair, **changes)))


def random_masks(base: Path, root: Path, loaded: LoadedRecipe) -> Context:
    """What is trained in root/run, with gates at random."""
    run = RunFolder(root / "run")
    run.path.mkdir()
    context = build_context(loaded, run, ModelSpec.open(base), Silent())
    assert context.student.gates is not None
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for alpha in context.student.gates.log_alpha.values():
            alpha.copy_(torch.randn(alpha.shape, generator=generator))
    return context


IDS = (torch.arange(24).reshape(2, 12) * 7919) % 280 + 5


@pytest.mark.parametrize("kind", KINDS)
def test_the_teacher_keeps_its_weights_and_the_student_has_the_repaired_ones(
    llama: Path, tmp_path: Path, kind: str
) -> None:
    context = context_of(llama, tmp_path, kind)
    with torch.no_grad():
        teacher = context.unpruned(IDS)
        context.project_masks()
        bare = context.student(IDS, context.masks)
        context.set_masks()
        assert torch.equal(context.unpruned(IDS), teacher)
        repaired = context.student(IDS, context.masks)
        assert torch.equal(context.unpruned(IDS), teacher)
    assert (repaired - teacher).square().mean() < (bare - teacher).square().mean()
    figures = context.learned["repair"]
    assert figures["modules"] == 6
    assert 0 < figures["repaired"] <= 6
    assert figures["error_after"] < figures["error_before"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_module_whose_repair_does_not_help_on_held_out_text_stays_as_it_is(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    from koffkit.training import repair

    real, calls = repair.output_error, []

    def worse_with_every_repair(*arguments: Any) -> float:
        calls.append(arguments)
        return real(*arguments) + (0.0 if len(calls) % 2 else 1e9)  # the first of two is without

    monkeypatch.setattr(repair, "output_error", worse_with_every_repair)
    context = context_of(llama, tmp_path, kind)
    context.set_masks()
    figures = context.learned["repair"]
    assert (figures["repaired"], figures["modules"]) == (0, 6)
    assert figures["error_after"] == figures["error_before"]
    assert not context.run.repair_file.exists()


@pytest.mark.parametrize(
    ("family", "kind"), [("llama", "bias"), ("llama", "least_squares"), ("qwen2", "least_squares")]
)
def test_the_export_computes_as_the_run_learned_it(tmp_path: Path, family: str, kind: str) -> None:
    base = make_checkpoint(tmp_path / "base", family)
    state = run_recipe(load_recipe(recipe_of(base, tmp_path, kind)), tmp_path / "run")
    assert state.repair is not None and state.repair.sha256 == state.files["repair.safetensors"].sha256
    export(tmp_path / "run", tmp_path / "out")  # the gate: float64
    config = json.loads((tmp_path / "out" / "backbone" / "config.json").read_text())
    manifest = json.loads((tmp_path / "out" / "koffkit.json").read_text())
    assert manifest["removed"]["parameters"] == state.budget.removed_params
    assert (manifest["removed"]["added"] > 0) == (kind == "bias")
    if kind == "bias":
        assert config["mlp_bias"] is True
        assert config["attention_bias"] is True
        written = load_file(tmp_path / "out" / "backbone" / "model.safetensors")
        assert not written["model.layers.0.mlp.gate_proj.bias"].any()
        assert (
            sum(value.numel() for name, value in written.items() if name.endswith(".bias"))
            == (manifest["removed"]["added"])
        )


def test_an_export_of_a_damaged_repair_is_refused(llama: Path, tmp_path: Path) -> None:
    run_recipe(load_recipe(recipe_of(llama, tmp_path, "least_squares")), tmp_path / "run")
    file = tmp_path / "run" / "repair.safetensors"
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    with pytest.raises(IntegrityError, match=r"repair\.safetensors"):
        export(tmp_path / "run", tmp_path / "out")
    with pytest.raises(IntegrityError, match=r"does not fit the base"):
        Repair.open(file, ModelSpec.open(make_checkpoint(tmp_path / "other", intermediate_size=40)))


class Stopping(Silent):
    def __init__(self, stage: str) -> None:
        self.stage, self.stop = stage, False

    def advance(self, stage: str, done: int, figures: Any) -> None:
        self.stop = self.stop or stage == self.stage


@pytest.mark.parametrize("stage", ["repair", "recover"])
def test_interrupted_and_resumed_comes_to_the_same_bits(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    loaded = load_recipe(recipe_of(llama, tmp_path, "least_squares"))
    run_recipe(loaded, tmp_path / "whole")
    progress = Stopping(stage)
    stop = property(lambda self: lambda: progress.stop, lambda *_: None)
    monkeypatch.setattr(Context, "stop", stop)
    with pytest.raises(Interrupted, match=f"interrupted in {stage}"):
        run_recipe(loaded, tmp_path / "parts", progress=progress)
    progress.stop, progress.stage = False, ""
    if stage == "recover":
        shutil.copytree(tmp_path / "parts", tmp_path / "damaged")
        (tmp_path / "damaged" / "repair.safetensors").unlink()
        with pytest.raises(IntegrityError, match=r"repair\.safetensors: missing, or not the file"):
            run_recipe(loaded, tmp_path / "damaged", resume=True, progress=progress)
    run_recipe(loaded, tmp_path / "parts", resume=True, progress=progress)
    for name in ("repair.safetensors", "memories/north/adapter_model.safetensors"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert RunState.read(tmp_path / "parts" / "run.json").results == (
        RunState.read(tmp_path / "whole" / "run.json").results
    )


def test_a_family_without_such_a_bias_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    base = make_checkpoint(tmp_path / "base", "qwen2")
    loaded = load_recipe(recipe_of(base, tmp_path, "bias"))
    with pytest.raises(UsageError, match=r"mlp\.down_proj of qwen2 has no bias in stock software; use least"):
        run_recipe(loaded, tmp_path / "run")
    assert not (tmp_path / "run" / "run.json").exists()


def test_text_too_short_to_hold_a_part_out_is_refused(llama: Path, tmp_path: Path) -> None:
    context = context_of(llama, tmp_path, "bias", mask={"repair_tokens": 1})
    with pytest.raises(DataError, match=r"3 sequences of calibration text are too few to hold one out"):
        context.set_masks()
