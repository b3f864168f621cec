"""Models whose layers are not alike, or see a window only: the batch says what each prompt says alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from koffkit import KoffModel
from koffkit.serving.engine import Engine

from ...common import make_checkpoint, recipe_dict, write_recipe
from .test_engine import PROMPTS, Asked


def check(model: KoffModel, memories: list[str | None]) -> None:
    """Rows of different lengths, so that newcomers join a batch that is there."""
    prompts = enumerate(PROMPTS * 2)
    rows = [(prompt, memories[place % len(memories)], 9 + place % 6) for place, prompt in prompts]
    alone = [model.complete(prompt, memory=memory, max_new_tokens=count) for prompt, memory, count in rows]
    with Engine(model, max_batch=3) as engine:
        asked = [Asked(engine, prompt, memory, max_tokens=count) for prompt, memory, count in rows]
        assert [one.text() for one in asked] == alone


@pytest.mark.parametrize(
    ("model_type", "config"),
    [
        ("mistral", {"sliding_window": 6}),
        ("gemma3_text", {"sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"] * 2}),
        ("qwen3", {"head_dim": 8}),
    ],
)
def test_windows(tmp_path: Path, model_type: str, config: dict[str, Any]) -> None:
    layers = len(config.get("layer_types", "abc"))
    model = KoffModel.from_pretrained(
        make_checkpoint(tmp_path / "base", model_type, num_hidden_layers=layers, **config)
    )
    check(model, [None])


def test_layers_that_differ_in_heads_and_widths(tmp_path: Path) -> None:
    from koffkit.exporters import export

    from koffkit.recipe.load import load_recipe
    from koffkit.stages.engine import run_recipe

    base = make_checkpoint(tmp_path / "base", num_key_value_heads=4)
    tree = recipe_dict(base, tmp_path / "data")
    tree["mask"] |= {"structures": ["mlp_neuron", "kv_group"], "global_sparsity": 0.3, "layout": "ragged"}
    tree["stages"] = [tree["stages"][0]]
    recipe = write_recipe(tmp_path / "recipe.yaml", tree)
    run_recipe(load_recipe(recipe), tmp_path / "run")
    export(tmp_path / "run", tmp_path / "out")
    model = KoffModel.from_pretrained(tmp_path / "out")
    assert len({widths.kv_heads for widths in model._widths}) > 1
    check(model, ["north", None, "south"])
