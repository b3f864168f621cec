from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from koffkit.exporters import export
from safetensors.torch import load_file

from koffkit import KoffModel
from koffkit.checkpoint.spec import ModelSpec
from koffkit.errors import Interrupted, UsageError
from koffkit.masks.convert import as_gates
from koffkit.masks.file import load_masks
from koffkit.model.student import Student, load_frozen
from koffkit.progress import Silent
from koffkit.recipe.load import LoadedRecipe, load_recipe
from koffkit.stages.engine import run_recipe

from ...common import digests, recipe_dict, write_recipe

IDS = torch.arange(20).reshape(2, 10) + 4


LEARNED = {"score": "learned", "steps": 3, "lr": 4.0}


def recipe(
    base: Path,
    root: Path,
    *,
    tuned: bool,
    lora: bool = False,
    repair: str = "none",
    restore: dict[str, Any] | None = None,
) -> LoadedRecipe:
    root.mkdir(parents=True, exist_ok=True)
    tree = recipe_dict(base, root / "data")
    tree["memory"] |= {"kv": None, "neurons": {"count": 3, "tuned": tuned}}
    tree["memory"]["lora"] = tree["memory"]["lora"] if lora else None
    tree["mask"] |= {"global_sparsity": 0.2, "repair": repair, "repair_tokens": 2048}
    rates = {"lora": 2e-2, "neurons": 1e-2}
    tree["stages"] = [
        {"learn_masks": {"max_steps": 3, "batch_size": 2, "lr": {"gates": 0.3}}},
        {"restore": {"batches": 2, "batch_size": 2} | (restore or {})},
        {"recover": {"max_steps": 6, "batch_size": 2, "lr": rates}},
        {"evaluate": {"batch_size": 4, "max_tokens": 64}},
    ]
    return load_recipe(write_recipe(root / "recipe.yaml", tree))


@pytest.mark.parametrize("restore", [{}, LEARNED], ids=["scored", "learned"])
def test_backbone_and_memory_compute_what_the_wider_mask_does(
    llama: Path, tmp_path: Path, restore: dict[str, Any]
) -> None:
    run_recipe(recipe(llama, tmp_path, tuned=False, restore=restore), tmp_path / "run")
    export(tmp_path / "run", tmp_path / "out")
    spec = ModelSpec.open(llama)
    gates = as_gates(load_masks(tmp_path / "run" / "masks.safetensors", spec))
    restored = load_file(tmp_path / "out" / "memories" / "north" / "neurons.safetensors")
    for layer in range(spec.num_layers):
        places = restored[f"layers.{layer}.neurons"]
        assert len(places) == 3
        assert not bool(gates["mlp_neuron"][layer, places].any())
        gates["mlp_neuron"][layer, places] = 1
    student = Student(load_frozen(str(llama), "float32"), spec, None, None)
    with torch.no_grad():
        expected = torch.nn.functional.linear(student(IDS, gates), student.head)
    model = KoffModel.from_pretrained(tmp_path / "out")
    assert torch.allclose(model.logits(IDS, "north"), expected, atol=1e-5)
    assert (model.logits(IDS, None) - expected).abs().max() > 1e-3


def test_tuned_neurons_move_and_fixed_ones_do_not(llama: Path, tmp_path: Path) -> None:
    runs = {}
    for tuned in (False, True):
        run_recipe(recipe(llama, tmp_path / str(tuned), tuned=tuned), tmp_path / str(tuned) / "run")
        runs[tuned] = load_file(tmp_path / str(tuned) / "run" / "memories" / "north" / "neurons.safetensors")
    fixed, tuned_ones = runs[False], runs[True]
    base = load_file(llama / "model.safetensors")
    for name, value in fixed.items():
        _, layer, own = name.split(".", 2)
        if own == "neurons":
            assert value.equal(tuned_ones[name])
            continue
        places, weight = fixed[f"layers.{layer}.neurons"], base[f"model.layers.{layer}.mlp.{own}"]
        assert value.equal(weight[:, places] if "down" in own else weight[places])
        assert not value.equal(tuned_ones[name])


class StopAt(Silent):
    """Interrupts a run when a stage reaches a step."""

    def __init__(self, stage: str, step: int) -> None:
        self.place = (stage, step)

    def advance(self, name: str, done: int, figures: Any) -> None:
        if (name, done) == self.place:
            raise Interrupted("stopped by the test")


CHOOSING = "restore: learned choice"


@pytest.mark.parametrize(
    "place", [("restore", 3), (CHOOSING, 1), (CHOOSING, 2), ("recover", 2), ("recover", 5), ("evaluate", 1)]
)
def test_an_interrupted_run_ends_as_if_it_had_not_been(
    place: tuple[str, int], llama: Path, tmp_path: Path
) -> None:
    restore = LEARNED if place[0] == CHOOSING else {}
    loaded = recipe(llama, tmp_path, tuned=True, lora=True, repair="least_squares", restore=restore)
    run_recipe(loaded, tmp_path / "whole")
    with pytest.raises(Interrupted):
        run_recipe(loaded, tmp_path / "cut", progress=StopAt(*place))
    run_recipe(loaded, tmp_path / "cut", resume=True)
    learned = [digests(tmp_path / name) for name in ("whole", "cut")]
    files = [name for name in learned[0] if name.startswith("memories")]
    assert len(files) == 8
    for name in [*files, "repair.safetensors", "masks.safetensors"]:
        assert learned[0][name] == learned[1][name], name


def test_backbone_and_memories_are_repaired_together(llama: Path, tmp_path: Path) -> None:
    """The repair brings the pruned model with its memory nearer, and is exported as it was measured."""
    kl = {}
    for kind in ("none", "least_squares"):
        run_recipe(recipe(llama, tmp_path / kind, tuned=False, repair=kind), tmp_path / kind / "run")
        state = json.loads((tmp_path / kind / "run" / "run.json").read_text())
        kl[kind] = state["results"]["mean"]["matched"]["kl"]
    assert kl["least_squares"] < 0.95 * kl["none"]
    assert state["repair"]["repaired"] > 0
    assert state["repair"]["error_after"] < state["repair"]["error_before"]
    export(tmp_path / "least_squares" / "run", tmp_path / "out")  # refuses what is not the same
    bundle = json.loads((tmp_path / "out" / "memories" / "north" / "memory.json").read_text())
    assert bundle["neurons"] == {"count": 9, "layout": "uniform", "tuned": False, "fitted": True}


def test_neurons_and_their_stage_go_together(llama: Path, tmp_path: Path) -> None:
    tree = recipe_dict(llama, tmp_path / "data")
    tree["stages"].insert(1, {"restore": {}})
    with pytest.raises(UsageError, match=r"stage restore has nothing to do without memory\.neurons"):
        load_recipe(write_recipe(tmp_path / "without.yaml", tree))
    tree["memory"]["neurons"] = {"count": 1}
    del tree["stages"][1]
    with pytest.raises(UsageError, match=r"memory\.neurons: stage restore chooses them; put"):
        load_recipe(write_recipe(tmp_path / "with.yaml", tree))


@pytest.mark.parametrize("repair", ["none", "least_squares"])
def test_a_learned_choice_is_another_one_of_the_same_size(llama: Path, tmp_path: Path, repair: str) -> None:
    found = {}
    for name, restore in {"scored": {}, "learned": LEARNED}.items():
        loaded = recipe(llama, tmp_path / name, tuned=False, repair=repair, restore=restore)
        run_recipe(loaded, tmp_path / name / "run")
        kept = load_file(tmp_path / name / "run" / "memories" / "north" / "neurons.safetensors")
        found[name] = {key: value.tolist() for key, value in kept.items() if key.endswith("neurons")}
    assert found["scored"] != found["learned"]
    assert all(len(places) == 3 for places in found["learned"].values())


@pytest.mark.parametrize(
    "changes", [{"steps": 4}, {"lr": 1.0}, {"score": "activation", "steps": 4, "lr": 1.0}]
)
def test_steps_of_nothing_that_learns_are_refused(
    llama: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    told = " and ".join(name for name in ("steps", "lr") if name in changes)
    score = changes.get("score", "sensitivity")
    with pytest.raises(
        UsageError, match=rf"{told}: nothing is learned with score: {score}; set score: learned"
    ):
        recipe(llama, tmp_path, tuned=False, restore=changes)
