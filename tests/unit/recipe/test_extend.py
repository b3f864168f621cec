from __future__ import annotations

from pathlib import Path

import pytest

from koffkit.errors import UsageError
from koffkit.recipe.extend import merged
from koffkit.recipe.load import load_recipe


def test_mappings_merge_and_everything_else_replaces() -> None:
    parent = {"mask": {"structures": ["a"], "sparsity": 0.1}, "seed": 1, "domains": {"x": 1}, "list": [1, 2]}
    child = {"mask": {"sparsity": 0.2}, "domains": {"y": 2}, "list": [3], "retention": None}
    found = merged(parent, child)
    assert found == {
        "mask": {"structures": ["a"], "sparsity": 0.2},
        "seed": 1,
        "domains": {"y": 2},
        "list": [3],
        "retention": None,
    }
    assert parent["mask"]["sparsity"] == 0.1


def test_stages_merge_by_name_and_new_ones_find_their_place() -> None:
    parent = {"stages": [{"learn_masks": {"max_steps": 5, "lr": {"gates": 1}}}, {"evaluate": {}}]}
    found = merged(parent, {"stages": {"recover": {"max_steps": 2}, "learn_masks": {"lr": {"kv": 2}}}})
    assert found["stages"] == [
        {"learn_masks": {"max_steps": 5, "lr": {"gates": 1, "kv": 2}}},
        {"recover": {"max_steps": 2}},
        {"evaluate": {}},
    ]
    assert merged(parent, {"stages": [{"learn_masks": {"max_steps": 1}}]})["stages"] == [
        {"learn_masks": {"max_steps": 1}}
    ]


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_a_chain_of_recipes_relative_to_each_other(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    write(tmp_path / "middle.yaml", "koffkit: 1\nextends: quickstart\nname: middle\nmask: {multiple_of: 8}\n")
    path = write(tmp_path / "sub" / "leaf.yaml", "koffkit: 1\nextends: ../middle.yaml\nname: leaf\nseed: 7\n")
    recipe = load_recipe(path, ["seed=8"]).recipe
    assert (recipe.name, recipe.seed, recipe.mask.multiple_of, recipe.mask.global_sparsity) == (
        "leaf",
        8,
        8,
        0.33,
    )


def test_an_error_names_the_file_that_has_it(tmp_path: Path) -> None:
    write(tmp_path / "parent.yaml", "koffkit: 1\nextends: quickstart\nname: p\nmask:\n  multiple_of: none\n")
    path = write(
        tmp_path / "child.yaml", "koffkit: 1\nextends: parent.yaml\nname: c\nmask:\n  lambda_int: 3\n"
    )
    with pytest.raises(UsageError) as error:
        load_recipe(path)
    first, second = sorted(str(error.value).splitlines())
    assert first.startswith(f"{path}:5: mask.lambda_int: unknown key; did you mean 'lambda_init'?")
    assert second.startswith(f"{tmp_path / 'parent.yaml'}:5: mask.multiple_of: 'none'")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("nowhere", "child.yaml: extends: nowhere: no such recipe file"),
        ("[a]", "name one recipe file"),
        ("child.yaml", "extends itself"),
    ],
)
def test_bad_extends(tmp_path: Path, value: str, message: str) -> None:
    path = write(tmp_path / "child.yaml", f"koffkit: 1\nextends: {value}\nname: c\n")
    with pytest.raises(UsageError, match=message):
        load_recipe(path)
