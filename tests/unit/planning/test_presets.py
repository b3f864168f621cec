from __future__ import annotations

from pathlib import Path

import pytest

from koffkit.checkpoint.spec import ModelSpec
from koffkit.planning.cluster import H100, MARGIN, RTX_4090, estimate
from koffkit.planning.plan import make_plan
from koffkit.planning.presets import preset
from koffkit.planning.shapes import SHAPES
from koffkit.recipe.builtin import shipped
from koffkit.recipe.load import load_recipe

from ...conftest import Koffkit

PAGE = Path(__file__).parents[3] / "docs" / "hardware.md"
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in PAGE.read_text(encoding="utf-8").splitlines()
    if line.startswith("| ") and " GB | " in line
]


def test_every_shipped_recipe_can_be_judged() -> None:
    known = {name: preset(path, 10**15) for name, path in shipped().items()}
    assert all(one is not None and one.fits and one.settings == [] for one in known.values())


@pytest.mark.parametrize("name", ["llama-3.2-3b-topics", "paper/1b/hinge-60", "qwen2.5-3b-topics"])
def test_settings_make_a_recipe_fit_and_keep_the_tokens_of_a_step(name: str) -> None:
    path = shipped()[name]
    spec = ModelSpec(config=SHAPES[load_recipe(path).recipe.base.model])
    peak = make_plan(load_recipe(path).recipe, spec).peak_memory_bytes
    as_it_is, smaller = preset(path, round(peak / MARGIN) + 1), preset(path, round(peak / MARGIN) - 1)
    assert as_it_is is not None
    assert (as_it_is.fits, as_it_is.settings, as_it_is.peak_memory_bytes) == (True, [], peak)
    assert smaller is not None
    assert smaller.fits
    assert smaller.settings
    changed = load_recipe(path, smaller.settings)
    plan = make_plan(changed.recipe, spec)
    assert plan.peak_memory_bytes == smaller.peak_memory_bytes < peak
    assert plan.training_tokens == make_plan(load_recipe(path).recipe, spec).training_tokens
    none = preset(path, 10**9)
    assert none is not None
    assert not none.fits


def test_presets_are_listed(koffkit: Koffkit) -> None:
    listed = koffkit("recipe", "list", "--gpu", "24")
    assert listed.code == 0
    lines = listed.out.splitlines()
    assert any(line.split()[0] == "llama-3.2-3b-topics" and line.split()[1] == "20.3" for line in lines)
    assert any(
        "qwen2.5-3b-topics" in line and "--set train.gradient_accumulation=8" in line for line in lines
    )
    (paged,) = (line for line in lines if line.startswith("paper/llama-3.2-3b-topics "))
    assert paged.split()[1] == "15.5" and paged.endswith(", with --set train.page_memories=true")
    assert not any(line.startswith("llama-3.1-8b-topics") for line in lines)
    assert "Too large for 24 GB" in lines[-1]
    shown = koffkit("recipe", "list", "--gpu", "24", "--json").json
    assert set(shown["presets"]) | set(shown["too_large"]) == set(shipped())
    assert "llama-3.1-8b-topics" in shown["too_large"]
    assert koffkit("recipe", "list", "--gpu", "0").code == 2


@pytest.mark.parametrize("row", ROWS, ids=lambda row: " ".join(row[:2]))
def test_the_page_says_what_the_counts_say(row: list[str]) -> None:
    cards, model, domains, lies, sequences, steps, memory, training = row
    recipe = load_recipe("llama-3.2-3b-topics").recipe
    chosen = dict(list(recipe.domains.items())[: int(domains)])
    recipe = recipe.model_copy(update={"domains": chosen})
    cluster = {24: RTX_4090, 80: H100}[int(cards.split()[2])]
    name = next(name for name in SHAPES if name.endswith(model))
    found = estimate(recipe, ModelSpec(config=SHAPES[name]), cluster, int(cards.split()[0]))
    assert found.fits
    assert (found.layout, str(found.sequences), f"{found.steps:,}") == (lies, sequences, steps)
    assert f"{found.memory / 1e9:.0f} GB" == memory
    shown = f"{found.seconds / 3600:.1f} h" if found.seconds >= 3600 else f"{found.seconds / 60:.1f} min"
    assert shown == training


def test_the_page_has_rows_for_all_four_machines() -> None:
    assert {row[0] for row in ROWS} == {"1 x 24 GB", "1 x 80 GB", "8 x 80 GB", "16 x 80 GB"}
