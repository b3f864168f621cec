"""`servable: true`: defaults, and one error for everything that contradicts it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from koffkit.errors import UsageError
from koffkit.recipe.load import load_recipe

from ...common import recipe_dict, write_recipe


def _recipe(tmp_path: Path, **changes: Any) -> Path:
    tree = recipe_dict(tmp_path / "base", tmp_path / "data", servable=True)
    del tree["mask"]["multiple_of"]
    tree["memory"]["lora"]["rank"] = 8
    for part, own in changes.items():
        tree[part].update(own)
    return write_recipe(tmp_path / "r.yaml", tree)


def test_it_rounds_widths_where_the_recipe_says_nothing(tmp_path: Path) -> None:
    assert load_recipe(_recipe(tmp_path)).recipe.mask.multiple_of == 64
    assert load_recipe(_recipe(tmp_path, mask={"multiple_of": 128})).recipe.mask.multiple_of == 128
    assert load_recipe(_recipe(tmp_path), ["servable=false"]).recipe.mask.multiple_of == 1


def test_every_contradiction_is_in_one_error(tmp_path: Path) -> None:
    mask = {"layout": "ragged", "structures": ["mlp_neuron", "v_channel"], "multiple_of": 16}
    memory = {"layers": {"upper": 2}, "lora": {"rank": 24, "alpha": 24, "targets": ["v_proj"]}}
    path = _recipe(tmp_path, mask=mask, memory=memory)
    with pytest.raises(UsageError) as caught:
        load_recipe(path)
    text = str(caught.value)
    assert len(text.splitlines()) == 1
    for said in (
        "mask.structures has v_channel",
        "mask.layout is ragged",
        "mask.multiple_of is 16",
        "memory.layers is not all",
        "memory.lora.rank is 24 (one of 1, 8, 16",
        "change that, or remove servable",
    ):
        assert said in text, text


def test_memories_without_kv_may_be_in_any_layers(tmp_path: Path) -> None:
    assert load_recipe(_recipe(tmp_path, memory={"layers": {"upper": 2}, "kv": None})).recipe.servable
