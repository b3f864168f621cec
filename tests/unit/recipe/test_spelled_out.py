from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft202012Validator

from koffkit.recipe.builtin import shipped
from koffkit.recipe.load import load_recipe, recipe_from_tree
from koffkit.recipe.spelled_out import MODELINE, defaults_left, spelled_out, with_schema

from ...conftest import Koffkit


@pytest.mark.parametrize("name", ["quickstart", "llama-3.2-3b-languages", "paper/ablations/kv-only"])
def test_an_editor_finds_the_schema_and_the_text_stays_a_recipe(
    koffkit: Koffkit, name: str, tmp_path: Path
) -> None:
    text = koffkit("recipe", "show", name).out
    assert text.count(MODELINE) == 1
    schema = json.loads(Path(text.splitlines()[0].removeprefix(MODELINE)).read_text(encoding="utf-8"))
    Draft202012Validator(schema).validate(yaml.safe_load(text))
    (tmp_path / "mine.yaml").write_text(text)
    shown, shipped_one = load_recipe(tmp_path / "mine.yaml").recipe, load_recipe(name).recipe
    assert shown == shipped_one


@pytest.mark.parametrize("name", ["quickstart", "paper/llama-3.1-8b-topics"])
def test_all_fields_are_the_same_recipe_with_its_defaults_marked(koffkit: Koffkit, name: str) -> None:
    text = koffkit("recipe", "show", name, "--all").out
    tree = yaml.safe_load(text)
    assert recipe_from_tree(tree, (), Path.cwd()).recipe == load_recipe(name).recipe
    assert f"{tree['name']}\n" in text
    marked = [line for line in text.splitlines() if line.endswith("# default")]
    assert "  reach_by: 0.5  # ours  # default" in marked
    assert not any(line.startswith("name:") for line in marked)


def test_defaults_stand_at_the_end(koffkit: Koffkit) -> None:
    text = koffkit("recipe", "show", "quickstart").out
    left = list(defaults_left(load_recipe("quickstart").recipe))
    assert "stages.evaluate.swap: true" in left
    assert not any(line.startswith(("domains", "name", "seed")) for line in left)
    assert text.endswith("".join(f"# {line}\n" for line in left))


def test_a_file_of_ones_own(koffkit: Koffkit, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("extends: quickstart\nname: mine\nseed: 5\n")
    text = koffkit("recipe", "show", tmp_path / "mine.yaml", "--all").out
    assert "seed: 5\n" in text
    missing = koffkit("recipe", "show", tmp_path / "none.yaml")
    assert missing.code == 2


def test_a_schema_line_takes_the_place_of_another() -> None:
    text = with_schema(f"{MODELINE}./elsewhere.json\n# A recipe.\nkoffkit: 1\n")
    assert text.splitlines()[1:] == ["# A recipe.", "koffkit: 1"]


def test_every_shipped_recipe_can_be_spelled_out() -> None:
    for name in shipped():
        assert yaml.safe_load(spelled_out(load_recipe(name).recipe))["koffkit"] == 1
