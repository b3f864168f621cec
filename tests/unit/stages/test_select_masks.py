from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from koffkit.exporters import export

from koffkit.errors import Interrupted, UsageError
from koffkit.progress import Silent
from koffkit.recipe.load import load_recipe
from koffkit.stages import engine
from koffkit.stages.engine import run_recipe

from ...common import recipe_dict, write_recipe

MASK = {"structures": ["mlp_neuron"], "global_sparsity": 0.12, "multiple_of": 4}


def recipe_of(llama: Path, root: Path, selector: str = "fisher", **changes: Any) -> Path:
    recipe = recipe_dict(llama, root / "data", **changes)
    recipe["stages"][0] = {"select_masks": {"selector": selector, "batches": 2}}
    return write_recipe(root / "recipe.yaml", recipe)


@pytest.mark.parametrize(("selector", "layout"), [("flap", "uniform"), ("taylor", "ragged")])
def test_a_selected_mask_recovers_and_exports_like_a_learned_one(
    llama: Path, tmp_path: Path, selector: str, layout: str
) -> None:
    recipe = recipe_of(llama, tmp_path, selector, mask=MASK | {"layout": layout})
    state = run_recipe(load_recipe(recipe), tmp_path / "run")
    over = state.budget.removed_params - state.budget.target_params
    assert 0 <= over < state.budget.step_params
    assert state.results["mean"]["matched"] != state.results["mean"]["backbone"]
    export(tmp_path / "run", tmp_path / "out")
    manifest = json.loads((tmp_path / "out" / "koffkit.json").read_text())
    assert manifest["removed"]["parameters"] == state.budget.removed_params


class Stopping(Silent):
    """Asks to stop when a stage has come this far."""

    def __init__(self, stage: str, done: int) -> None:
        self.at, self.stop = (stage, done), False

    def advance(self, stage: str, done: int, figures: Any) -> None:
        self.stop = self.stop or (stage, done) == self.at


@pytest.mark.parametrize("place", [("select_masks", 3), ("recover", 2)])
def test_interrupted_and_resumed_comes_to_the_same_bits(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: tuple[str, int]
) -> None:
    loaded = load_recipe(recipe_of(llama, tmp_path))
    run_recipe(loaded, tmp_path / "whole")
    progress = Stopping(*place)
    real = engine.build_context

    def build(*arguments: Any) -> Any:
        context = real(*arguments)
        monkeypatch.setattr(
            type(context), "stop", property(lambda self: lambda: progress.stop, lambda *_: None)
        )
        return context

    monkeypatch.setattr(engine, "build_context", build)
    with pytest.raises(Interrupted, match=f"interrupted in {place[0]}"):
        run_recipe(loaded, tmp_path / "parts", progress=progress)
    progress.stop, progress.at = False, ("", 0)
    run_recipe(loaded, tmp_path / "parts", resume=True, progress=progress)
    for name in ("masks.safetensors", "memories/north/adapter_model.safetensors"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_the_text_that_is_looked_at_matters(llama: Path, tmp_path: Path) -> None:
    found = []
    for text in ("domains", "retention"):
        recipe = recipe_dict(llama, tmp_path / "data", mask=MASK)
        recipe["stages"] = [{"select_masks": {"batches": 1, "text": text}}]
        run_recipe(load_recipe(write_recipe(tmp_path / "recipe.yaml", recipe)), tmp_path / text)
        found.append((tmp_path / text / "masks.safetensors").read_bytes())
    assert found[0] != found[1]


def for_memories(llama: Path, root: Path, layout: str, **options: Any) -> Path:
    """A recipe whose memories give neurons back."""
    memory = {"layers": "all", "lora": None, "kv": None, "neurons": {"count": 3, "layout": layout}}
    recipe = recipe_dict(llama, root / "data", mask=MASK | {"layout": layout}, memory=memory)
    chosen = {"selector": "sensitivity", "batches": 2} | options
    recipe["stages"] = [{"select_masks": chosen}, {"restore": {"batches": 2}}, {"evaluate": {}}]
    return write_recipe(root / "recipe.yaml", recipe)


@pytest.mark.parametrize("layout", ["uniform", "ragged"])
def test_a_mask_that_counts_on_memories_has_the_same_size_and_is_another(
    llama: Path, tmp_path: Path, layout: str
) -> None:
    states = []
    for counted in (False, True):
        recipe = for_memories(llama, tmp_path, layout, for_memories=counted)
        states.append(run_recipe(load_recipe(recipe), tmp_path / str(counted)))
    assert states[0].budget == states[1].budget
    found = [(tmp_path / name / "masks.safetensors").read_bytes() for name in ("False", "True")]
    assert found[0] != found[1]
    export(tmp_path / "True", tmp_path / "out")  # refuses what is not the same


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"selector": "activation"}, "does not estimate a loss.*choose fisher or sensitivity"),
        ({"text": "retention"}, "the text is retention text alone, so"),
    ],
)
def test_counting_on_memories_is_refused_where_it_makes_no_sense(
    llama: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    recipe = for_memories(llama, tmp_path, "ragged", for_memories=True, **options)
    with pytest.raises(UsageError, match=message):
        run_recipe(load_recipe(recipe), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_counting_on_memories_needs_some_that_give_neurons_back(llama: Path, tmp_path: Path) -> None:
    recipe = recipe_dict(llama, tmp_path / "data", mask=MASK)
    recipe["stages"][0] = {"select_masks": {"selector": "fisher", "for_memories": True}}
    with pytest.raises(UsageError, match=r"memory\.neurons is null, so"):
        load_recipe(write_recipe(tmp_path / "recipe.yaml", recipe))


def test_depth_and_uniform_layers_are_refused_before_anything_is_loaded(llama: Path, tmp_path: Path) -> None:
    loaded = load_recipe(recipe_of(llama, tmp_path, "depth", mask=MASK))
    with pytest.raises(UsageError, match=r"set mask.layout to ragged"):
        run_recipe(loaded, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"retention": None}, "no retention text"),
        (
            {"memory": {"layers": {"learned_bytes": 100000}, "lora": None, "kv": {"tokens": 3}}},
            "learned_bytes chooses by the memories of stage learn_masks",
        ),
    ],
)
def test_options_that_contradict_the_recipe(
    llama: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    recipe = recipe_dict(llama, tmp_path / "data", **changes)
    recipe["stages"][0] = {"select_masks": {"text": "retention" if "retention" in changes else "all"}}
    with pytest.raises(UsageError, match=message):
        load_recipe(write_recipe(tmp_path / "recipe.yaml", recipe))
