"""Reading recipes: YAML with line numbers, `--set` overrides, and every error at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ..errors import UsageError, near_name
from .builtin import shipped
from .extend import merged
from .findings import Lines, findings, place_of
from .overrides import apply_override, shown
from .schema import Recipe
from .yaml_text import read_yaml

MAX_PARENTS = 16


@dataclass(frozen=True)
class LoadedRecipe:
    """A valid recipe and the folder that its relative paths start from.

    Args:
        lines: where the user wrote each field, as far as that is known.
    """

    recipe: Recipe
    path: Path
    root: Path
    lines: Lines = field(default_factory=dict)

    def place(self, *location: str | int) -> str:
        """`file:line` of a field, or the file where no line is known."""
        return place_of(location, self.lines) or str(self.path)


def load_recipe(name: str | Path, overrides: Sequence[str] = ()) -> LoadedRecipe:
    """Read a recipe file, or a shipped recipe by name, and apply `a.b=VALUE` overrides.

    Raises:
        UsageError: with one line per finding, `file:line: field: what is wrong`.
    """
    path = _find(name)
    tree, lines = _read_extended(path, ())
    _apply_overrides(tree, lines, overrides)
    recipe = validated(tree, path, lines)
    return LoadedRecipe(recipe=recipe, path=path, root=path.resolve().parent, lines=lines)


def recipe_from_tree(tree: Mapping[str, Any], overrides: Sequence[str], root: Path) -> LoadedRecipe:
    """A recipe that is a mapping in memory and not a file, with `a.b=VALUE` overrides.

    Args:
        root: the folder that its relative paths start from.

    Raises:
        UsageError: with one line per finding, `recipe: field: what is wrong`.
    """
    whole: dict[str, Any] = deepcopy(dict(tree))
    lines: Lines = {}
    if "extends" in whole:
        parent, lines = _read_extended(_find(str(whole.pop("extends")), root / "recipe"), ())
        whole = merged(parent, whole)
    _apply_overrides(whole, lines, overrides)
    recipe = validated(whole, "recipe", lines)
    return LoadedRecipe(recipe=recipe, path=root / "recipe", root=root, lines=lines)


def _apply_overrides(tree: dict[str, Any], lines: Lines, overrides: Sequence[str]) -> None:
    """Change fields in place; later findings in them refer to the option."""
    for override in overrides:
        place = apply_override(tree, override)
        for below in [location for location in lines if location[: len(place)] == place]:
            del lines[below]
        lines[place] = f"--set {shown(override)}"


def validated(
    tree: Mapping[str, Any], source: Path | str, lines: Lines, model: type[Recipe] = Recipe
) -> Recipe:
    """The recipe that a tree of plain values describes.

    Args:
        source: the file to name in findings.
        lines: where the user wrote each place, as far as that is known.

    Raises:
        UsageError: with one line per finding.
    """
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        raise UsageError("\n".join(findings(error, tree, source, lines))) from None


def _find(name: str | Path, beside: Path | None = None) -> Path:
    """A recipe file, relative to the recipe that extends it or to the working folder, or a shipped recipe by
    name."""
    where = f"{beside}: extends: " if beside is not None else ""
    for path in ([beside.parent / name] if beside is not None else []) + [Path(name)]:
        try:
            if path.exists() and (path.suffix or path.is_file()):
                return path
        except OSError as error:
            raise UsageError(f"{where}{str(name)[:80]}: cannot be read ({error.strerror}).") from None
    if str(name) in shipped():
        return shipped()[str(name)]
    raise UsageError(
        f"{where}{name}: no such recipe file; among the shipped ones, {near_name(str(name), shipped())}"
    )


def _read_extended(path: Path, below: tuple[Path, ...]) -> tuple[dict[str, Any], Lines]:
    """Read a recipe merged into the one it extends, and so on; a field's place is the last file that sets
    it."""
    tree, lines = read_yaml(path)
    places: Lines = {location: f"{path}:{line}" for location, line in lines.items()}
    if "extends" not in tree:
        return tree, places
    parent, place = tree.pop("extends"), places["extends",]
    if not isinstance(parent, str):
        raise UsageError(f"{place}: extends: {parent!r}: name one recipe file or shipped recipe.")
    if path.resolve() in below or len(below) > MAX_PARENTS:
        raise UsageError(
            f"{place}: extends: {parent}: this recipe extends itself, or more than {MAX_PARENTS} others."
        )
    base, earlier = _read_extended(_find(parent, path), (*below, path.resolve()))
    return merged(base, tree), earlier | places


__all__ = ["LoadedRecipe", "apply_override", "load_recipe", "recipe_from_tree", "validated"]
