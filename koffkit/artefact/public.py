"""What of a run may be told to whoever reads an export: names, and no places on the disk of the maker."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

EMBEDDED = "embedded:"
# Absolute, of a home, above the recipe, a file's address, or with a drive's letter.
_PLACE = re.compile(r"(/|~|\.\.?/|file:|[A-Za-z]:[\\/]).*", re.DOTALL)
_ADDRESS = re.compile(r"file:|[A-Za-z]:[\\/]")
CLIMB = 2
"""Folders that a relative path in an export may go up; further away lies what is nobody's business."""


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


def file_name(place: str) -> str:
    """The name at the end of a path."""
    return place.rstrip("/\\").replace("\\", "/").rpartition("/")[2] or "."


@dataclass(frozen=True)
class Around:
    """Names places as an export may: relative to the folder that holds it, so that what lies beside it is
    found again, and by the name alone what lies far away.

    Args:
        export: where the export will lie.
        root: where relative paths begin.
    """

    export: Path
    root: Path

    def __call__(self, place: str) -> str:
        """A path, which may be a pattern, in the words of an export."""
        if _ADDRESS.match(place):
            return file_name(place)
        path = os.path.normpath(Path.cwd() / self.root / Path(place).expanduser())
        holder = os.path.normpath(Path.cwd() / self.export.parent)
        relative = Path(os.path.relpath(path, holder))
        shared = os.path.commonpath([path, holder])
        if relative.parts.count("..") > CLIMB or shared == Path(shared).anchor:
            return file_name(place)
        return relative.as_posix() if relative.parts[:1] == ("..",) else f"./{relative.as_posix()}"


def public_place(text: str, place: Callable[[str], str] = file_name) -> str:
    """A text, in other words if it is a place on the disk of the maker.

    Args:
        text: any value of a recipe, or a pattern of files.
        place: how to call places.
    """
    return place(text) if _PLACE.fullmatch(text) else text


def public_recipe(
    recipe: Mapping[str, Any], on_hub: bool, place: Callable[[str], str] = file_name
) -> dict[str, Any]:
    """A recipe that says nothing of the disk of the maker.

    Args:
        recipe: the fields of a recipe.
        on_hub: whether its base is on the hub.
        place: how to call files and folders; by default by their names alone.
    """
    tree: dict[str, Any] = _public(recipe, place)
    base = tree.get("base")
    if isinstance(base, dict) and isinstance(base.get("model"), str):
        tree["base"] = base | {"model": public_base(recipe["base"]["model"], on_hub, place)}
    return tree


def public_base(model: str, on_hub: bool, place: Callable[[str], str] = file_name) -> str:
    """A base as a recipe may name it where others read; see `public_recipe`."""
    return model if on_hub or model.startswith(EMBEDDED) else place(model)


def _public(value: Any, place: Callable[[str], str]) -> Any:
    if isinstance(value, Mapping):
        return {key: _public(item, place) for key, item in value.items()}
    if isinstance(value, list):
        return [_public(item, place) for item in value]
    return public_place(value, place) if isinstance(value, str) else value
