from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
import yaml

from koffkit.recipe.builtin import describe, json_schema, shipped


def plain(schema: Any) -> Any:
    """Without the one-valued `enum` that older releases of pydantic write beside a `const`."""
    if isinstance(schema, list):
        return [plain(value) for value in schema]
    if not isinstance(schema, dict):
        return schema
    return {key: plain(value) for key, value in schema.items() if not (key == "enum" and "const" in schema)}


def test_the_committed_schema_is_current() -> None:
    committed = json.loads(
        shipped()["quickstart"].with_name("recipe.schema.json").read_text(encoding="utf-8")
    )
    assert plain(committed) == plain(json_schema()), "run: koffkit recipe schema > recipes/recipe.schema.json"


@pytest.mark.parametrize("name", shipped())
def test_shipped_recipes_fit_the_schema_and_say_what_they_are_for(name: str) -> None:
    jsonschema.validate(yaml.safe_load(shipped()[name].read_text(encoding="utf-8")), json_schema())
    assert len(describe(shipped()[name])) > 20


def test_the_schema_refuses_unknown_keys_of_a_recipe_that_extends() -> None:
    good = {"koffkit": 1, "extends": "quickstart", "name": "x", "stages": {"recover": {"max_steps": 3}}}
    jsonschema.validate(good, json_schema())
    for changes in ({"mask": {"surprise": 1}}, {"surprise": 1}, {"seed": "x"}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(good | changes, json_schema())


def test_the_schema_refuses_unknown_keys() -> None:
    recipe = yaml.safe_load(shipped()["quickstart"].read_text(encoding="utf-8"))
    recipe["mask"]["surprise"] = 1
    with pytest.raises(jsonschema.ValidationError, match="surprise"):
        jsonschema.validate(recipe, json_schema())


def undescribed(schema: Any, place: str) -> list[str]:
    """The places of all fields without a description, however deep."""
    if isinstance(schema, list):
        return [line for index, entry in enumerate(schema) for line in undescribed(entry, f"{place}.{index}")]
    if not isinstance(schema, dict):
        return []
    fields = schema.get("properties", {})
    without = [f"{place}.{name}" for name, field in fields.items() if not field.get("description")]
    return without + [line for key, entry in schema.items() for line in undescribed(entry, f"{place}.{key}")]


def test_every_field_is_described() -> None:
    assert undescribed({"properties": {"a": {"properties": {"b": {}}}}}, "x") == [
        "x.a",
        "x.properties.a.b",
    ]
    assert undescribed(json_schema(), "schema") == []
