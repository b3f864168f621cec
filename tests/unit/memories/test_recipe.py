from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from koffkit.artefact.export import Export, open_export
from koffkit.errors import UsageError
from koffkit.memories.recipe import MemoryRecipe, check_name, memory_recipe

from ...conftest import Shipped

SOURCE = {"text": ["a.txt"]}


def with_recipe(export: Export, **changes: Any) -> Export:
    return replace(export, manifest=export.manifest.evolve(recipe=export.manifest.recipe | changes))


def test_settings_are_those_of_the_export(shipped: Shipped, llama: Path) -> None:
    export = open_export(shipped.export)
    loaded = memory_recipe(export, "east", SOURCE, llama)
    recipe, original = loaded.recipe, export.manifest.recipe
    dumped = recipe.model_dump(mode="json")
    assert isinstance(recipe, MemoryRecipe)
    assert list(recipe.domains) == ["east"]
    assert recipe.retention is None
    assert all(
        dumped[key] == original[key]
        for key in ("sequence_length", "holdout", "memory", "distill", "train", "mask", "seed")
    )
    assert recipe.base.model == str(llama)
    assert recipe.name == "tiny-east"
    assert loaded.root == Path.cwd()
    assert [stage.name for stage in recipe.stages] == ["recover", "evaluate"]


@pytest.mark.parametrize(("rate", "repair"), [(None, "least_squares"), (1e-3, "none")])
def test_neurons_are_fitted_to_a_backbone_that_was_only_fitted(
    rate: float | None, repair: str, shipped: Shipped, llama: Path
) -> None:
    export = open_export(shipped.export)
    changes = {
        "mask": export.manifest.recipe["mask"] | {"repair": "least_squares"},
        "memory": export.manifest.recipe["memory"] | {"neurons": {"count": 2}},
        "stages": [{"recover": {"max_steps": 4, "lr": {"backbone": rate}}}],
    }
    changed = with_recipe(export, **changes)
    assert memory_recipe(changed, "east", SOURCE, llama).recipe.mask.repair == repair


@pytest.mark.parametrize(
    ("stages", "steps", "rate"),
    [
        (
            [
                {"learn_masks": {"max_steps": 7, "lr": {"lora": 0.5}}},
                {"recover": {"max_steps": 4, "lr": {"lora": 0.25}}},
            ],
            6,
            0.25,
        ),
        ([{"learn_masks": {"max_steps": 7, "lr": {"lora": 0.5}}}], 4, 0.5),
    ],
)
def test_steps_are_those_that_each_domain_got(
    stages: list[Any], steps: int, rate: float, shipped: Shipped, llama: Path
) -> None:
    export = with_recipe(open_export(shipped.export), stages=stages)
    recover = memory_recipe(export, "east", SOURCE, llama).recipe.stages[0].options
    assert (recover.max_steps, recover.lr.lora) == (steps, rate)


@pytest.mark.parametrize("name", ["a b", "", "-x", "a/b", ".", "ä", "x\n"])
def test_names_that_cannot_be_domains(name: str) -> None:
    with pytest.raises(UsageError, match="not a domain's name"):
        check_name(name)
    check_name("Ok_1-2")


@pytest.mark.parametrize(
    "override",
    ["mask.multiple_of=2", "memoryx=1", "base.model=x", "stages.evaluate.max_tokens=3", "domains={}"],
)
def test_what_is_fixed_cannot_be_set(override: str, shipped: Shipped, llama: Path) -> None:
    with pytest.raises(UsageError, match="fixed by the backbone"):
        memory_recipe(open_export(shipped.export), "east", SOURCE, llama, [override])


def test_an_export_cannot_switch_remote_code_on(shipped: Shipped, llama: Path) -> None:
    export = open_export(shipped.export)
    export = with_recipe(export, base=export.manifest.recipe["base"] | {"trust_remote_code": True})
    assert memory_recipe(export, "east", SOURCE, llama).recipe.base.trust_remote_code is False
