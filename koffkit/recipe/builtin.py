"""Recipes that ship with koffkit."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any


def shipped() -> dict[str, Path]:
    """Name -> file of every shipped recipe."""
    folder = Path(str(files("koffkit.recipes")))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def describe(path: Path) -> str:
    """The recipe's first plain comment line."""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("#") and "yaml-language-server" not in line:
            return line.lstrip("# ").strip()
    return ""


def json_schema() -> dict[str, Any]:
    """The JSON schema of recipes, as `recipes/recipe.schema.json` holds it."""
    from .schema import Recipe

    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Recipe.model_json_schema()}
