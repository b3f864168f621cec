"""Recipes that ship with koffkit."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any


def shipped() -> dict[str, Path]:
    """Name -> file of every shipped recipe; those in a folder are called `folder/name`."""
    folder = Path(str(files("koffkit.recipes")))
    paths = sorted(folder.rglob("*.yaml"), key=lambda path: (len(path.parts), path))
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in paths}


def schema_file() -> Path:
    """The installed JSON schema of recipes."""
    return Path(str(files("koffkit.recipes"))) / "recipe.schema.json"


def describe(path: Path) -> str:
    """The recipe's first plain comment line."""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("#") and "yaml-language-server" not in line:
            return line.lstrip("# ").strip()
    return ""


def json_schema() -> dict[str, Any]:
    """The JSON schema of recipes, as `recipes/recipe.schema.json` holds it."""
    from .schema import Recipe

    schema = Recipe.model_json_schema()
    definitions = schema.pop("$defs")
    definitions["Recipe"] = schema
    # A recipe that extends another one gives some of the fields; its stages may be a mapping.
    properties = {
        key: ({"description": value["description"]} if key == "stages" else _all_optional(value, definitions))
        for key, value in schema["properties"].items()
    }
    extends = {
        "type": "string",
        "description": "A recipe file, or the name of a shipped recipe; what is given here changes it.",
    }
    partial = {
        "type": "object",
        "required": ["extends"],
        "properties": properties | {"extends": extends},
        "additionalProperties": False,
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$defs": definitions,
        "if": {"required": ["extends"]},
        "then": partial,
        "else": {"$ref": "#/$defs/Recipe"},
    }


def _all_optional(value: dict[str, Any], definitions: Mapping[str, Any]) -> dict[str, Any]:
    """A field of a recipe that extends: of an object, the keys are known and none is required."""
    reference = value.get("$ref")
    if reference is None:
        return value
    definition = definitions[reference.rpartition("/")[2]] | {"description": value["description"]}
    return {key: entry for key, entry in definition.items() if key != "required"}
