"""`koffkit memory add` and `replace` with restored neurons, on a backbone that is sliced already."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from koffkit.exporters import export
from safetensors.torch import load_file

from koffkit import KoffModel
from koffkit.checkpoint.spec import ModelSpec
from koffkit.errors import UsageError
from koffkit.masks.convert import as_gates
from koffkit.masks.file import load_masks
from koffkit.memories.add import add_memory
from koffkit.model.student import Student, load_frozen
from koffkit.recipe.load import load_recipe
from koffkit.runtime.verify import verify_export
from koffkit.stages.engine import run_recipe

from ..common import digests, recipe_dict, sentences, write_recipe, write_record
from ..conftest import Koffkit, Shipped

SOURCE = {"text": ["east.txt"]}
ALONE = ["memory.lora=null", "memory.kv=null", "stages.restore={batches: 2, batch_size: 2}"]
IDS = torch.arange(20).reshape(2, 10) + 4


@pytest.fixture
def whole(restored: Shipped, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of an export whose memories have neurons, in the working folder, with text for `east`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "east.txt").write_text("\n\n".join(sentences(7, 80)) + "\n")
    return Path(shutil.copytree(restored.export, tmp_path / "whole"))


@pytest.mark.parametrize("choice", [[], ["stages.restore.score=learned", "stages.restore.steps=2"]])
def test_an_added_memory_gives_back_neurons_of_the_base(whole: Path, llama: Path, choice: list[str]) -> None:
    before = digests(whole)
    told = add_memory(whole, "east", SOURCE, overrides=[*ALONE, *choice])
    after = digests(whole)
    assert {name: after[name] for name in before} == before
    assert told["parameters"] == 9 * 3 * 32
    spec = ModelSpec.open(llama)
    gates = as_gates(load_masks(whole / "masks.safetensors", spec))
    restored = load_file(whole / "memories" / "east" / "neurons.safetensors")
    for layer in range(spec.num_layers):
        places = restored[f"layers.{layer}.neurons"]
        assert len(places) == 3
        assert not bool(gates["mlp_neuron"][layer, places].any())
        gates["mlp_neuron"][layer, places] = 1
    student = Student(load_frozen(str(llama), "float32"), spec, None, None)
    with torch.no_grad():
        expected = torch.nn.functional.linear(student(IDS, gates), student.head)
    model = KoffModel.from_pretrained(whole)
    assert torch.allclose(model.logits(IDS, "east"), expected, atol=1e-5)
    info = json.loads((whole / "memories" / "east" / "memory.json").read_text())
    assert info["neurons"] == {"count": 9, "layout": "uniform", "tuned": False, "fitted": False}
    assert info["lora"] is None


def test_all_halves_are_learned_and_checked(whole: Path, koffkit: Koffkit) -> None:
    steps = ["--set", "stages.recover.max_steps=4", "--set", "memory.neurons.tuned=true"]
    added = koffkit("memory", "add", whole, "east", "--text", "east.txt", *steps, "--json")
    assert added.code == 0, added.err
    files = {path.name for path in (whole / "memories" / "east").iterdir()}
    assert {"neurons.safetensors", "adapter_model.safetensors", "kv_memory.safetensors"} <= files
    assert koffkit("verify", whole, "--json").json["ok"] is True
    listed = koffkit("memory", "list", whole, "--json").json["memories"]
    assert listed["east"]["neurons"] == 9


def test_a_memory_of_an_export_without_neurons_may_have_some(
    out: Path, shipped: Shipped, koffkit: Koffkit
) -> None:
    sets = [part for setting in (*ALONE, "memory.neurons.count=2") for part in ("--set", setting)]
    done = koffkit("memory", "replace", out, "north", "--text", "east.txt", *sets, "--json")
    assert done.code == 0, done.err
    assert (out / "memories" / "north" / "neurons.safetensors").is_file()
    assert koffkit("verify", out, "--json").json["ok"] is True


def test_an_export_without_masks_says_so(whole: Path) -> None:
    (whole / "masks.safetensors").unlink()
    manifest = json.loads((whole / "koffkit.json").read_text())
    del manifest["files"]["masks.safetensors"]
    write_record(whole / "koffkit.json", manifest)
    with pytest.raises(UsageError, match=r"what the mask removed is not on record here \(masks\.safetensors"):
        add_memory(whole, "east", SOURCE, overrides=ALONE)
    assert not (whole.parent / "runs").exists()


def test_more_neurons_than_were_removed_are_refused(whole: Path) -> None:
    with pytest.raises(UsageError, match=r"memory\.neurons\.count: 48 means 144 neurons .* the mask removes"):
        add_memory(whole, "east", SOURCE, overrides=[*ALONE, "memory.neurons.count=48"])


@pytest.fixture
def fitted(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An export whose backbone was fitted together with its memories, in the working folder."""
    monkeypatch.chdir(tmp_path)
    tree = recipe_dict(llama, tmp_path / "data")
    tree["memory"] = {"layers": "all", "lora": None, "kv": None, "neurons": {"count": 6}}
    tree["mask"] |= {"global_sparsity": 0.2, "repair": "least_squares", "repair_tokens": 4096}
    tree["stages"] = [
        {"select_masks": {"selector": "flap", "batches": 1}},
        {"restore": {"batches": 2, "batch_size": 2}},
        {"evaluate": {"max_tokens": 256}},
    ]
    run_recipe(load_recipe(write_recipe(tmp_path / "recipe.yaml", tree)), tmp_path / "run")
    export(tmp_path / "run", tmp_path / "out")
    return tmp_path / "out"


def memory_of(folder: Path, name: str) -> dict[str, Any]:
    info: dict[str, Any] = json.loads((folder / "memories" / name / "memory.json").read_text())
    return info


def test_an_added_memory_is_fitted_to_a_fitted_backbone(
    fitted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its text is that of a memory of the run, which was fitted together with the backbone."""
    text = {"text": ["data/north.txt"]}
    add_memory(fitted, "east", text)
    with monkeypatch.context() as patch:
        patch.setattr("koffkit.training.neuron_repair.fit_columns", lambda *_: {})
        add_memory(fitted, "west", text)
    kl = {name: memory_of(fitted, name)["figures"]["matched"]["kl"] for name in ("north", "east", "west")}
    assert kl["east"] < 0.95 * kl["west"]
    assert kl["north"] < kl["east"]  # fitted together they are better still
    assert memory_of(fitted, "east")["neurons"]["fitted"] is True
    assert memory_of(fitted, "west")["neurons"]["fitted"] is False
    assert verify_export(fitted)["ok"] is True


def test_too_little_text_to_fit_is_said(fitted: Path, tmp_path: Path, koffkit: Koffkit) -> None:
    (tmp_path / "east.txt").write_text("\n\n".join(sentences(7, 2)) + "\n")
    done = koffkit("memory", "add", fitted, "east", "--text", "east.txt")
    assert done.code == 0, done.err
    assert "the neurons keep the base's columns" in done.err
    assert memory_of(fitted, "east")["neurons"]["fitted"] is False
