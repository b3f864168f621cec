"""The recipes under `paper/` are the paper's setting, at the true shapes of its models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from koffkit.checkpoint.spec import ModelSpec
from koffkit.cli.checks import check_recipe
from koffkit.method.projection import project
from koffkit.planning.plan import budget_of
from koffkit.recipe.builtin import shipped
from koffkit.recipe.load import load_recipe
from koffkit.recipe.provenance import ABLATIONS, PAPER, UNSTATED, origins
from koffkit.recipe.spelled_out import values_of

from ...conftest import Koffkit
from ...true_shapes import TRUE_SHAPES

PAPERS = [name for name in shipped() if name.startswith("paper/")]
MAIN = [name for name in PAPERS if name.count("/") == 1]


@pytest.mark.parametrize("name", PAPERS)
def test_every_value_that_the_paper_states_is_the_papers(name: str) -> None:
    recipe = load_recipe(name).recipe
    found = origins(recipe, values_of(recipe))
    others = {place: str(origin) for place, origin in found.items() if origin.paper != UNSTATED}
    assert {place: text for place, text in others.items() if not text.startswith("paper: ")} == {}
    assert len(others) > 20


@pytest.mark.parametrize("name", MAIN)
def test_the_main_setting_has_every_field_of_the_table(name: str) -> None:
    assert set(PAPER) - set(values_of(load_recipe(name).recipe)) == set()


def test_every_ablation_has_a_recipe_that_differs_where_the_table_says() -> None:
    recipes = {name: load_recipe(name).recipe for name in PAPERS if name not in MAIN}
    assert {recipe.name.removeprefix("paper-") for recipe in recipes.values()} == set(ABLATIONS)
    main = values_of(load_recipe("paper/llama-3.2-3b-topics").recipe)
    for name, recipe in recipes.items():
        values, ablation = values_of(recipe), ABLATIONS[recipe.name.removeprefix("paper-")]
        assert {place: values.get(place) for place in ablation.values} == dict(ablation.values), name
        changed = {place for place, value in values.items() if main.get(place, value) != value}
        ours = {"name", "base.model", "retention", "stages.learn_masks.lr.gates"}
        assert {place for place in changed if not place.startswith("domains.")} - ours <= set(ablation.values)
        assert (recipe.retention is None) == (name.endswith("no-retention") or "/1b/" in name), name


@pytest.fixture(scope="module")
def project_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Text of every domain, and the `config.json` of every model."""
    folder = tmp_path_factory.mktemp("project")
    names = {domain for name in PAPERS for domain in load_recipe(name).recipe.domain_names} | {"general"}
    for name in names:
        (folder / "data" / name).mkdir(parents=True)
        (folder / "data" / name / "a.txt").write_text("One document.\n\nAnother one.\n")
    for model, config in TRUE_SHAPES.items():
        (folder / model).mkdir(parents=True)
        (folder / model / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("name", PAPERS)
def test_every_recipe_is_valid_at_the_true_shape_of_its_model(name: str, project_folder: Path) -> None:
    """With the model in a folder, of which the plan needs no more than `config.json`."""
    path = project_folder / f"{name.replace('/', '-')}.yaml"
    model = project_folder / load_recipe(name).recipe.base.model
    path.write_text(f"extends: {name}\nname: mine\nbase: {{model: {model}}}\n")
    loaded = load_recipe(path)
    check_recipe(loaded)
    budget = budget_of(loaded.recipe, ModelSpec.open(model))
    assert budget.target_params == -(
        -round(loaded.recipe.mask.global_sparsity * 1e6) * budget.base_params // 10**6
    )


def test_validate_says_so_on_the_command_line(koffkit: Koffkit, project_folder: Path) -> None:
    path = project_folder / "mine.yaml"
    model = project_folder / "Qwen/Qwen2.5-3B"
    text = f"extends: paper/qwen2.5-3b-topics\nname: mine\nbase: {{model: {model}}}\n"
    path.write_text(text)
    assert "mine.yaml: ok" in koffkit("recipe", "validate", path).out
    path.write_text(text + "mask: {global_sparsity: 0.9}\n")
    refused = koffkit("recipe", "validate", path)
    assert refused.code == 2
    assert "mask.global_sparsity: 0.9 is unreachable" in refused.err


@pytest.mark.parametrize(
    "name", ["paper/llama-3.1-8b-topics", "paper/ablations/upper-gates", "paper/1b/kv-gates"]
)
def test_the_budget_is_met_to_a_step_at_true_shapes(name: str) -> None:
    recipe = load_recipe(name).recipe
    spec = ModelSpec(config=TRUE_SHAPES[recipe.base.model])
    budget = budget_of(recipe, spec)
    generator, layers = torch.Generator().manual_seed(0), spec.num_layers
    scores = {
        structure: torch.randn(layers, count, generator=generator)
        for structure, count in budget.total_units.items()
    }
    heads = {structure: spec.arch.structures[structure].heads(spec.shape) for structure in scores}
    kept = {key: mask.sum(1).tolist() for key, mask in project(scores, budget, heads).items()}
    removed = budget.removed_by(kept)
    assert budget.target_params <= removed < budget.target_params + budget.step_params


def test_recipe_show_says_whose_values_they_are(koffkit: Koffkit) -> None:
    lines = koffkit("recipe", "show", "paper/llama-3.1-8b-topics").out.splitlines()
    assert "# mask.lambda_init: 25.0  (paper: Table 4)" in lines
    assert "# mask.init_open: 0.95  (ours; the paper does not say)" in lines
    other = koffkit("recipe", "show", "quickstart").out.splitlines()
    assert "# mask.temperature: 0.6666666666666666  (ours; the paper: 2.0 (Table 4))" in other
    whole = koffkit("recipe", "show", "paper/ablations/annealed", "--all").out
    assert "    end: 0.5  # paper: Table 9\n" in whole
    assert "  reach_by: 0.5  # ours  # default\n" in whole
    assert "model: meta-llama/Llama-3.2-3B\n" in whole
