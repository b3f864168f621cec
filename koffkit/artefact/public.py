"""What of a run may be told to whoever reads its cards: names, and no places on the disk of the maker."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

EMBEDDED = "embedded:"
# Absolute, of a home, above the recipe, a file's address, or with a drive's letter.
_PLACE = re.compile(r"(/|~|\.\.?/|file:|[A-Za-z]:[\\/]).*", re.DOTALL)


def hub_revision(model: str, folder: Path) -> str | None:
    """The commit of a hub model; None for any other.

    Args:
        model: the base as the recipe names it.
        folder: where it was found; downloads lie in `models--OWNER--NAME/snapshots/COMMIT`.
    """
    parts = folder.parts
    marker = f"models--{model.replace('/', '--')}"
    if "/" not in model or marker not in parts:
        return None
    below = parts[parts.index(marker) + 1 :]
    return below[1] if len(below) > 1 and below[0] == "snapshots" else None


def public_name(model: str, on_hub: bool) -> str:
    """A base's hub id or embedded name, and of a folder its own name alone."""
    if on_hub or model.startswith(EMBEDDED):
        return model
    return Path(model).name or Path(model).resolve().name


def public_recipe(recipe: dict[str, Any], on_hub: bool) -> dict[str, Any]:
    """A recipe with the names of files and folders, not where they lie."""
    tree: dict[str, Any] = _public(recipe)
    base = tree.get("base")
    if isinstance(base, dict) and isinstance(base.get("model"), str):
        tree["base"] = base | {"model": public_name(base["model"], on_hub)}
    return tree


def _public(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _public(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_public(item) for item in value]
    if isinstance(value, str) and _PLACE.fullmatch(value):
        return value.rstrip("/\\").replace("\\", "/").rpartition("/")[2] or "."
    return value
